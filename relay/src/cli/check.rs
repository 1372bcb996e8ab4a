//! `relay check`: everything that is wrong, at once.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::args::{Check, Global};
use super::database::open_store;
use super::{Exit, Failure, block_on, settings};
use crate::admin::{self, Missing, with_connection};
use crate::cause::chain;
use crate::config::{Config, Problem, Scope, database_url};
use crate::store::StoreError;
use crate::store::open::understand;

/// Checks the configuration and, when asked to, the database it names.
pub(super) fn run(global: &Global, check: &Check) -> Result<Exit, Failure> {
    let sources = settings::sources(global)?;
    let (mut problems, warnings) = match Config::load(&sources, Scope::Everything) {
        Ok(config) => (Vec::new(), config.advice()),
        Err(error) => (error.problems, Vec::new()),
    };
    let mut schema_version = None;
    // A mistake elsewhere in the file is no reason not to look at the database.
    if let Ok(config) = Config::load(&sources, Scope::Database) {
        if let Err(error) = understand(config.database.url.expose()) {
            problems.push(from_store(&config, &error));
        } else if check.connect {
            match block_on(look(&config))? {
                Ok(version) => {
                    schema_version = Some(version);
                    problems.extend(rights(&config)?);
                }
                Err(error) => problems.push(from_store(&config, &error)),
            }
        }
    }
    let file = sources.file.as_ref().map(|(path, _)| path.display().to_string());
    let value = json!({
        "file": file,
        "problems": problems.iter().map(as_json).collect::<Vec<_>>(),
        "warnings": warnings.iter().map(as_json).collect::<Vec<_>>(),
        "schema_version": schema_version,
    });
    global.output().one(&as_text(file.as_deref(), &problems, &warnings, schema_version), &value)?;
    Ok(if problems.is_empty() { Exit::Ok } else { Exit::Found })
}

/// Connects as the relay would and returns the schema version.
async fn look(config: &Config) -> Result<i32, StoreError> {
    let store = open_store(config).await?;
    store.verify().await?;
    Ok(store.status(None).await?.schema_version)
}

/// What the role may not do. Everything that is tried is rolled back.
fn rights(config: &Config) -> Result<Vec<Problem>, Failure> {
    let url = config.database.url.expose();
    let missing = with_connection!(&mut admin::connect(url, Missing::Refuse)?, conn => outbox::rights::missing(conn))?;
    let mut tables: BTreeMap<&str, (Vec<&str>, String)> = BTreeMap::new();
    for outbox::rights::Missing { right, table, answer, .. } in missing {
        tables.entry(table).or_insert((Vec::new(), answer)).0.push(right);
    }
    let problem = |(table, (rights, answer)): (&str, (Vec<&str>, String))| {
        let rights = rights.join(", ");
        Problem {
            section: "database".to_owned(),
            place: database_url::target(url),
            message: format!("the role may not {rights} on `{table}`: {answer}"),
            help: Some(format!("as the owner of the tables: GRANT {rights} ON {table} TO the role")),
        }
    };
    Ok(tables.into_iter().map(problem).collect())
}

fn from_store(config: &Config, error: &StoreError) -> Problem {
    let place = database_url::target(config.database.url.expose());
    let (message, help) = match error {
        StoreError::Unsuitable { problem, help } => (problem.clone(), Some(help.clone())),
        StoreError::ReadOnly { found, help, .. } => (format!("it takes no writes: {found}"), Some(help.clone())),
        other => (chain(other), None),
    };
    Problem { section: "database".to_owned(), place, message, help }
}

fn as_text(file: Option<&str>, problems: &[Problem], warnings: &[Problem], schema_version: Option<i32>) -> String {
    let mut lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
    if let Some(version) = schema_version {
        lines.push(format!("database: schema version {version}"));
    }
    if problems.is_empty() {
        lines.push(format!("{}: nothing wrong", file.unwrap_or("the configuration, without a file")));
    }
    lines.join("\n")
}

fn as_json(problem: &Problem) -> Value {
    json!({ "place": problem.place, "section": problem.section, "message": problem.message, "help": problem.help })
}
