//! SQL in the pages.

use outbox_tests::database::{Kind, TestDatabase};

use super::pages::{Block, blocks, pages};

/// The databases a block is for.
fn kinds(block: &Block) -> Vec<Kind> {
    let name = |kind: &Kind| match kind {
        Kind::Postgres => "postgres",
        Kind::Mariadb => "mariadb",
        Kind::Sqlite => "sqlite",
    };
    let named: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| block.is_marked(name(kind))).collect();
    if named.is_empty() { Kind::ALL.into() } else { named }
}

#[test]
fn statements_run_on_the_databases_they_name() {
    let blocks = blocks(&pages(), "sql");
    let plain: Vec<&Block> = blocks.iter().filter(|block| !block.is_marked("roles")).collect();
    assert!(!plain.is_empty());
    for block in plain {
        for kind in kinds(block) {
            let database = TestDatabase::with_schema(kind);
            database.try_exec(&block.text).unwrap_or_else(|error| panic!("{} on {kind}: {error}", block.place));
        }
    }
}
