//! A throw-away outbox in a SQLite file in the temporary folder.

use std::path::PathBuf;

use async_trait::async_trait;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use uuid::Uuid;

use super::{BenchError, DrainBench, Ground};

pub(super) struct Sqlite {
    folder: PathBuf,
    conn: SqliteConnection,
    pin: Option<SqliteConnection>,
}

/// The columns the floor reads; the relay reads no fewer.
#[derive(QueryableByName)]
struct Bare {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Text)]
    #[expect(dead_code, reason = "reading it is the point")]
    payload: String,
}

impl Sqlite {
    pub(super) fn create() -> Result<Sqlite, BenchError> {
        let folder = std::env::temp_dir().join(format!("outbox-bench-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).map_err(BenchError::ground)?;
        let mut conn = connect(&folder)?;
        outbox::migrations::run(&mut conn).map_err(BenchError::ground)?;
        Ok(Sqlite { folder, conn, pin: None })
    }
}

fn connect(folder: &std::path::Path) -> Result<SqliteConnection, BenchError> {
    let path = folder.join("outbox.db");
    let mut conn = SqliteConnection::establish(&path.to_string_lossy()).map_err(BenchError::ground)?;
    conn.batch_execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000")
        .map_err(BenchError::ground)?;
    Ok(conn)
}

#[async_trait]
impl Ground for Sqlite {
    fn url(&self) -> String {
        format!("sqlite:{}", self.folder.join("outbox.db").display())
    }

    async fn fill(&mut self, bench: &DrainBench) -> Result<(), BenchError> {
        diesel::sql_query(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
             INSERT INTO outbox_messages (topic, payload, ordering_key)
             SELECT 'bench.drain',
                    substr('{\"n\":' || n || ',\"text\":\"' || replace(hex(zeroblob(?2)), '0', 'x'), 1, ?2 - 2) || '\"}',
                    CASE WHEN ?3 > 0 THEN CAST(n % max(?1 / max(?3, 1), 1) AS TEXT) END
             FROM numbers",
        )
        .bind::<BigInt, _>(bench.messages.cast_signed())
        .bind::<Integer, _>(i32::try_from(bench.payload).unwrap_or(300))
        .bind::<BigInt, _>(bench.per_key.cast_signed())
        .execute(&mut self.conn)
        .map_err(BenchError::ground)?;
        self.conn.batch_execute("PRAGMA wal_checkpoint(TRUNCATE)").map_err(BenchError::ground)
    }

    async fn floor(&mut self, batch: i64) -> Result<u64, BenchError> {
        let (mut last, mut deleted) = (0, 0);
        loop {
            let rows: Vec<Bare> =
                diesel::sql_query("SELECT * FROM outbox_messages WHERE seq > ?1 ORDER BY seq LIMIT ?2")
                    .bind::<BigInt, _>(last)
                    .bind::<BigInt, _>(batch)
                    .load(&mut self.conn)
                    .map_err(BenchError::ground)?;
            let Some(highest) = rows.last() else { return Ok(deleted) };
            last = highest.seq;
            let list: Vec<String> = rows.iter().map(|row| row.seq.to_string()).collect();
            let sql = format!("DELETE FROM outbox_messages WHERE seq IN ({})", list.join(","));
            deleted += diesel::sql_query(sql).execute(&mut self.conn).map_err(BenchError::ground)? as u64;
        }
    }

    async fn pin(&mut self) -> Result<(), BenchError> {
        let mut conn = connect(&self.folder)?;
        conn.batch_execute("BEGIN; SELECT count(*) FROM outbox_messages").map_err(BenchError::ground)?;
        self.pin = Some(conn);
        Ok(())
    }

    async fn remove(self: Box<Self>) -> Result<(), BenchError> {
        let Sqlite { folder, conn, pin } = *self;
        drop((conn, pin));
        std::fs::remove_dir_all(folder).map_err(BenchError::ground)
    }
}
