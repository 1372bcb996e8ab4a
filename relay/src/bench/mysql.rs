//! A throw-away outbox on a MySQL or MariaDB server: a database of its own.

use async_trait::async_trait;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use uuid::Uuid;

use super::{BenchError, DrainBench, Ground, with_database};
use crate::store::mysql::address::Address;

pub(super) struct Mysql {
    conn: Conn,
    name: String,
    url: String,
    pin: Option<Conn>,
}

impl Mysql {
    pub(super) async fn create(url: &str) -> Result<Mysql, BenchError> {
        let name = format!("outbox_bench_{}", Uuid::new_v4().simple());
        let mut admin = connect(url).await?;
        admin.query_drop(format!("CREATE DATABASE {name}")).await.map_err(BenchError::ground)?;
        let url = with_database(url, &name);
        let mut conn = connect(&url).await?;
        conn.query_drop(outbox::migrations::sql(outbox::Database::Mysql)).await.map_err(BenchError::ground)?;
        conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await.map_err(BenchError::ground)?;
        Ok(Mysql { conn, name, url, pin: None })
    }
}

async fn connect(url: &str) -> Result<Conn, BenchError> {
    let address = Address::parse(url).map_err(|(problem, _help)| BenchError::ground(problem))?;
    address.connect().await.map_err(BenchError::ground)
}

#[async_trait]
impl Ground for Mysql {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn fill(&mut self, bench: &DrainBench) -> Result<(), BenchError> {
        // In steps: one statement of everything would need an undo log of everything.
        const STEP: u64 = 500;
        let mut n = 0;
        while n < bench.messages {
            let count = STEP.min(bench.messages - n);
            let rows: Vec<String> = (n..n + count)
                .map(|n| {
                    let start = format!("{{\"n\":{n},\"text\":\"");
                    let filler = "x".repeat(bench.payload.saturating_sub(start.len() + 2));
                    let key = match bench.per_key {
                        0 => "NULL".to_owned(),
                        per_key => format!("'{}'", n % (bench.messages / per_key).max(1)),
                    };
                    format!("('bench.drain','{start}{filler}\"}}',{key})")
                })
                .collect();
            let sql = format!("INSERT INTO outbox_messages (topic, payload, ordering_key) VALUES {}", rows.join(","));
            self.conn.query_drop(sql).await.map_err(BenchError::ground)?;
            n += count;
        }
        Ok(())
    }

    async fn floor(&mut self, batch: i64) -> Result<u64, BenchError> {
        let (mut last, mut deleted) = (0_i64, 0);
        loop {
            let rows: Vec<mysql_async::Row> = self
                .conn
                .exec("SELECT * FROM outbox_messages WHERE seq > ? ORDER BY seq LIMIT ?", (last, batch))
                .await
                .map_err(BenchError::ground)?;
            let seqs: Vec<i64> = rows.iter().filter_map(|row| row.get("seq")).collect();
            let Some(highest) = seqs.last() else { return Ok(deleted) };
            last = *highest;
            let list: Vec<String> = seqs.iter().map(i64::to_string).collect();
            let sql = format!("DELETE FROM outbox_messages WHERE seq IN ({})", list.join(","));
            self.conn.query_drop(sql).await.map_err(BenchError::ground)?;
            deleted += self.conn.affected_rows();
        }
    }

    async fn pin(&mut self) -> Result<(), BenchError> {
        let mut conn = connect(&self.url).await?;
        conn.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT").await.map_err(BenchError::ground)?;
        conn.query_drop("SELECT count(*) FROM outbox_meta").await.map_err(BenchError::ground)?;
        self.pin = Some(conn);
        Ok(())
    }

    async fn remove(self: Box<Self>) -> Result<(), BenchError> {
        let Mysql { mut conn, name, pin, .. } = *self;
        if let Some(pin) = pin {
            pin.disconnect().await.map_err(BenchError::ground)?;
        }
        conn.query_drop(format!("DROP DATABASE {name}")).await.map_err(BenchError::ground)?;
        conn.disconnect().await.map_err(BenchError::ground)
    }
}
