//! What is particular to MariaDB and MySQL.
//!
//! Both end a transaction behind diesel's back: a deadlock rolls it back, a DDL statement commits it, and what follows
//! commits on its own while diesel still counts a transaction. Therefore the statement itself asks the server.
//!
//! - **MariaDB** has `@@in_transaction`. The topic is NULL where that is not 1, and the column refuses it. The check
//!   costs nothing.
//! - **MySQL** has no such variable. Its first insert in a process fails on purpose, by a syntax error in a comment that
//!   only MySQL executes. From then on the process asks before each insert, with a savepoint that can only be released
//!   inside a transaction: one round trip more. This was written for MySQL 8 and could not be tried on it; the same
//!   savepoint was tried on MariaDB.
//!
//! Known limit: with `autocommit = 0` a server that lost the transaction is in a new one at once, and nobody can tell.

use std::sync::atomic::AtomicBool;

use diesel::deserialize::{self, FromSql};
use diesel::mysql::Mysql;
use diesel::query_builder::AstPass;
use diesel::result::{DatabaseErrorKind, Error as DieselError, QueryResult};
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt, Text};

use crate::connection::sealed::{Dialect, Judgement, Probe};
use crate::connection::{Database, OutboxBackend};
use crate::insert::{Proof, Row};

const TARGET: &str = "INSERT INTO outbox_messages (id, topic, ordering_key, payload, content_type, headers, \
                      destination, deliver_at, expires_at, version, dedup_key)\nVALUES ";

/// How many `?` a row has.
const BINDS: usize = 12;

/// What MySQL trips over, and repeats in its answer.
const STUMBLING_BLOCK: &str = "outbox_server_is_mysql";

static PROBE: Probe =
    Probe { sql: "SAVEPOINT outbox_probe; RELEASE SAVEPOINT outbox_probe", needed: AtomicBool::new(false) };

impl OutboxBackend for Mysql {}

impl Dialect for Mysql {
    const DATABASE: Database = Database::Mysql;

    type Batch = Vec<Row>;

    // The protocol counts binds with 16 bits, and a statement must fit into MariaDB's default packet of 16 MiB.
    const ROWS_MAX: usize = u16::MAX as usize / BINDS;
    const BYTES_MAX: usize = 12 * 1024 * 1024;

    fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String> {
        FromSql::<Text, Self>::from_sql(raw)
    }

    fn bind_text<'b>(text: &'b str, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_bind_param::<Text, _>(text)
    }

    fn batch(rows: Vec<Row>) -> Vec<Row> {
        rows
    }

    fn message_insert<'b>(row: &'b Row, proof: Proof, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("-- message_insert\n");
        out.push_sql(TARGET);
        push_row(row, proof, &mut out)?;
        push_stumbling_block(proof, &mut out);
        Ok(())
    }

    fn message_insert_many<'b>(batch: &'b Vec<Row>, proof: Proof, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        // Another number of rows is another statement; prepared ones would pile up.
        out.unsafe_to_cache_prepared();
        out.push_sql("-- message_insert_many\n");
        out.push_sql(TARGET);
        for (index, row) in batch.iter().enumerate() {
            if index > 0 {
                out.push_sql(", ");
            }
            push_row(row, proof, &mut out)?;
        }
        push_stumbling_block(proof, &mut out);
        Ok(())
    }

    fn judge(error: &DieselError) -> Judgement {
        let DieselError::DatabaseError(kind, information) = error else {
            return Judgement::Unrelated;
        };
        let text = information.message();
        // No row of ours has a topic that is NULL or breaks the constraint by itself. In a loose `sql_mode` an insert of
        // several rows turns NULL into '', which is what the constraint refuses.
        if matches!(kind, DatabaseErrorKind::NotNullViolation) && text.contains("'topic'")
            || text.contains("topic_is_dotted_segments")
            || text.contains("SAVEPOINT outbox_probe")
        {
            Judgement::NotInTransaction
        } else if text.contains(STUMBLING_BLOCK) {
            Judgement::CannotTell
        } else {
            Judgement::Unrelated
        }
    }

    fn probe() -> Option<&'static Probe> {
        Some(&PROBE)
    }
}

fn push_row<'b>(row: &'b Row, proof: Proof, out: &mut AstPass<'_, 'b, Mysql>) -> QueryResult<()> {
    // MariaDB executes what stands in `/*M! … */`, MySQL does not.
    let (begin, end) = match proof {
        Proof::Statement | Proof::Probe => ("/*M! IF(@@in_transaction = 1, */ ", " /*M! , NULL) */"),
        Proof::Caller => ("", ""),
    };
    out.push_sql("(");
    out.push_bind_param::<Binary, [u8]>(row.id.as_bytes())?;
    out.push_sql(", ");
    out.push_sql(begin);
    out.push_bind_param::<Text, str>(&row.topic)?;
    out.push_sql(end);
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Text>, _>(&row.key)?;
    out.push_sql(", ");
    out.push_bind_param::<Binary, [u8]>(row.payload.as_bytes())?;
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(&row.content_type)?;
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(&row.headers)?;
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Text>, _>(&row.destination)?;
    out.push_sql(", coalesce(TIMESTAMP'1970-01-01 00:00:00.000000' + INTERVAL ");
    out.push_bind_param::<Nullable<BigInt>, _>(&row.deliver_at_ms)?;
    out.push_sql(" * 1000 MICROSECOND, utc_timestamp(6) + INTERVAL ");
    out.push_bind_param::<Nullable<BigInt>, _>(&row.delay_ms)?;
    out.push_sql(" * 1000 MICROSECOND), TIMESTAMP'1970-01-01 00:00:00.000000' + INTERVAL ");
    out.push_bind_param::<Nullable<BigInt>, _>(&row.expires_at_ms)?;
    out.push_sql(" * 1000 MICROSECOND, ");
    out.push_bind_param::<SmallInt, _>(&row.version)?;
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Text>, _>(&row.dedup_key)?;
    out.push_sql(")");
    Ok(())
}

fn push_stumbling_block(proof: Proof, out: &mut AstPass<'_, '_, Mysql>) {
    if proof == Proof::Statement {
        // MariaDB skips comments with this version number, MySQL 8 executes them.
        out.push_sql(" /*!80000 ) outbox_server_is_mysql */");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enqueue::Next;
    use crate::envelope::Envelope;
    use crate::error::Error;
    use crate::insert::{ByCaller, ByProbe, ByStatement, Form, MessageInsert, MessageInsertMany};

    fn row() -> Row {
        Envelope::raw("a.b", "x").into_row().ok().unwrap()
    }

    fn one<F: Form>() -> String {
        diesel::debug_query::<Mysql, _>(&MessageInsert::<F>::new(&row())).to_string()
    }

    fn failure(kind: DatabaseErrorKind, text: &str) -> DieselError {
        DieselError::DatabaseError(kind, Box::new(text.to_owned()))
    }

    #[test]
    fn each_form_of_the_statement_asks_what_it_must() {
        let guard = "/*M! IF(@@in_transaction = 1, */ ? /*M! , NULL) */";
        let block = "/*!80000 ) outbox_server_is_mysql */";
        let asks = |sql: &str| (sql.contains(guard), sql.contains(block));
        assert_eq!(asks(&one::<ByStatement>()), (true, true));
        assert_eq!(asks(&one::<ByProbe>()), (true, false));
        assert_eq!(asks(&one::<ByCaller>()), (false, false));
        let batch = vec![row(), row()];
        let many = diesel::debug_query::<Mysql, _>(&MessageInsertMany::<Mysql, ByStatement>::new(&batch)).to_string();
        assert_eq!((many.matches(guard).count(), many.matches(block).count()), (2, 1));
    }

    #[test]
    fn row_has_as_many_binds_as_the_limit_assumes() {
        let sql = one::<ByCaller>();
        let (text, _) = sql.split_once(" -- binds").unwrap();
        assert_eq!(text.matches('?').count(), BINDS);
    }

    #[test]
    fn servers_answers_are_told_apart() {
        let not_null = failure(DatabaseErrorKind::NotNullViolation, "Column 'topic' cannot be null");
        let check = failure(DatabaseErrorKind::Unknown, "CONSTRAINT `topic_is_dotted_segments` failed for `o`.`m`");
        let probe = failure(DatabaseErrorKind::Unknown, "SAVEPOINT outbox_probe does not exist");
        for error in [not_null, check, probe] {
            assert_eq!(Mysql::judge(&error), Judgement::NotInTransaction, "{error}");
        }
        let syntax = "You have an error in your SQL syntax; … near ') outbox_server_is_mysql */' at line 3";
        let syntax = failure(DatabaseErrorKind::Unknown, syntax);
        assert_eq!(Mysql::judge(&syntax), Judgement::CannotTell);
        let other_column = failure(DatabaseErrorKind::NotNullViolation, "Column 'id' cannot be null");
        let deadlock = failure(DatabaseErrorKind::SerializationFailure, "Deadlock found");
        for error in [other_column, deadlock, DieselError::NotFound] {
            assert_eq!(Mysql::judge(&error), Judgement::Unrelated, "{error}");
        }
    }

    #[test]
    fn server_that_cannot_tell_is_probed_from_then_on() {
        let stumbled = failure(DatabaseErrorKind::Unknown, "near ') outbox_server_is_mysql */'");
        assert!(!PROBE.is_needed());
        assert!(matches!(Next::after::<Mysql>(Err(stumbled), "enqueue"), Next::Probe));
        assert!(PROBE.is_needed());
        let not_there = failure(DatabaseErrorKind::Unknown, "SAVEPOINT outbox_probe does not exist");
        assert!(matches!(Next::finish::<Mysql>(Err(not_there), "enqueue"), Err(Error::NotInTransaction { .. })));
    }
}
