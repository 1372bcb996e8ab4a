//! What people ask, and whether the relay may work here at all.

use super::connection::{Connection, Sql};
use super::value::{Micros, Octets};
use super::{circuits, destination, membership};
use crate::store::{Now, Status, StoreError};

/// The schema this build reads and writes.
const SCHEMA_VERSION: i32 = 1;

/// PostgreSQL 13 brought `xid8` and `pg_current_snapshot()`, without which the reader cannot prove anything.
const SERVER_VERSION_MIN: i32 = 130_000;

const SERVER_READ: Sql = Sql {
    name: "server_read",
    text: "-- server_read\n\
           SELECT current_setting('server_version_num')::integer, current_setting('server_version'), \
               to_regclass('outbox_meta') IS NOT NULL, \
               coalesce(current_schema(), ''), current_setting('default_transaction_read_only')::boolean",
};

const SCHEMA_READ: Sql = Sql { name: "schema_read", text: "-- schema_read\nSELECT schema_version FROM outbox_meta" };

const STATUS_PENDING: Sql = Sql {
    name: "status_pending",
    text: "-- status_pending\n\
           SELECT count(*), min(created_at), coalesce($1::timestamptz, now()) FROM outbox_messages",
};

const STATUS_WAITING: Sql = Sql {
    name: "status_waiting",
    text: "-- status_waiting\n\
           SELECT destination, state, count(*) FROM outbox_deliveries GROUP BY destination, state \
           ORDER BY destination COLLATE \"C\", state COLLATE \"C\"",
};

const STATUS_DUE: Sql = Sql {
    name: "status_due",
    text: "-- status_due\n\
           SELECT destination, min(due_at), coalesce($1::timestamptz, now()) FROM outbox_deliveries \
           WHERE NOT blocked AND due_at <= coalesce($1::timestamptz, now()) GROUP BY destination \
           ORDER BY destination COLLATE \"C\"",
};

const STATUS_DEAD: Sql = Sql {
    name: "status_dead",
    text: "-- status_dead\n\
           SELECT destination, reason, count(*) FROM outbox_dead_letters GROUP BY destination, reason \
           ORDER BY destination COLLATE \"C\", reason COLLATE \"C\"",
};

pub(super) async fn verify(connection: &mut Connection) -> Result<(), StoreError> {
    // The first question uses nothing newer than what is asked about.
    let rows = connection.run(&SERVER_READ, &[]).await?;
    let row = &rows[0];
    if row.get::<_, i32>(0) < SERVER_VERSION_MIN {
        return Err(StoreError::Unsuitable {
            problem: format!("the server is PostgreSQL {}, and the relay needs 13 or later", row.get::<_, &str>(1)),
            help: "upgrade the server".into(),
        });
    }
    if row.get::<_, bool>(4) {
        return Err(StoreError::Unsuitable {
            problem: "this role or database is set to `default_transaction_read_only`".into(),
            help: "let the relay use a role that may write".into(),
        });
    }
    if !row.get::<_, bool>(2) {
        let schema = row.get::<_, Octets<'_>>(3).text();
        return Err(StoreError::Unsuitable {
            problem: format!("the outbox tables are missing (the connection's first schema is `{schema}`)"),
            help: "run `relay migrate up`, or, when they are in another schema, put it into the role's `search_path`"
                .into(),
        });
    }
    let rows = connection.run(&SCHEMA_READ, &[]).await?;
    let found: Option<i32> = rows.first().map(|row| row.get(0));
    match found {
        Some(SCHEMA_VERSION) => Ok(()),
        Some(found) if found > SCHEMA_VERSION => Err(StoreError::Unsuitable {
            problem: format!("schema version {found} found, this build needs {SCHEMA_VERSION}"),
            help: "run a newer relay; applications may keep enqueueing".into(),
        }),
        Some(found) => Err(StoreError::Unsuitable {
            problem: format!("schema version {found} found, this build needs {SCHEMA_VERSION}"),
            help: "run `relay migrate up`; applications may keep enqueueing".into(),
        }),
        None => Err(StoreError::Unsuitable {
            problem: "the table `outbox_meta` is empty".into(),
            help: "restore its one row from a backup, or drop the outbox tables and run `relay migrate up`".into(),
        }),
    }
}

pub(super) async fn status(connection: &mut Connection, now: Now) -> Result<Status, StoreError> {
    let [pending, waiting, due, dead, members, told, routes, schema] = [
        connection.prepare(&STATUS_PENDING).await?,
        connection.prepare(&STATUS_WAITING).await?,
        connection.prepare(&STATUS_DUE).await?,
        connection.prepare(&STATUS_DEAD).await?,
        connection.prepare(membership::READ).await?,
        connection.prepare(circuits::READ).await?,
        connection.prepare(destination::READ).await?,
        connection.prepare(&SCHEMA_READ).await?,
    ];
    let connection = &*connection;
    let ((), pending, waiting, due, dead, members, told, routes, schema, ()) = tokio::try_join!(
        biased;
        connection.begin_reading(),
        async { connection.query(&pending, &[&now]).await },
        async { connection.query(&waiting, &[]).await },
        async { connection.query(&due, &[&now]).await },
        async { connection.query(&dead, &[]).await },
        async { connection.query(&members, &[]).await },
        async { connection.query(&told, &[]).await },
        async { connection.query(&routes, &[&now]).await },
        async { connection.query(&schema, &[]).await },
        connection.commit(),
    )?;
    let age = |row: &tokio_postgres::Row| {
        let now: Micros = row.get(2);
        row.get::<_, Option<Micros>>(1).map(|since| now.after(since))
    };
    let figures = |rows: &[tokio_postgres::Row]| {
        let text = |row: &tokio_postgres::Row, index: usize| row.get::<_, Octets<'_>>(index).text();
        rows.iter().map(|row| (text(row, 0), text(row, 1), row.get(2))).collect()
    };
    Ok(Status {
        pending: pending[0].get(0),
        oldest_pending: age(&pending[0]),
        waiting: figures(&waiting),
        oldest_due: due.iter().map(|row| (row.get::<_, Octets<'_>>(0).text(), age(row).unwrap_or_default())).collect(),
        dead: figures(&dead),
        membership: membership::membership(&members),
        routing: destination::routing(&routes),
        circuits: circuits::circuits(&told),
        schema_version: schema.first().map_or(0, |row| row.get(0)),
    })
}
