//! A throw-away outbox on a PostgreSQL server: a database of its own.

use async_trait::async_trait;
use tokio_postgres::Client;
use uuid::Uuid;

use super::{BenchError, DrainBench, Ground, with_database};
use crate::store::postgres::address::Address;

pub(super) struct Postgres {
    admin: Client,
    client: Client,
    name: String,
    url: String,
    pin: Option<Client>,
}

impl Postgres {
    pub(super) async fn create(url: &str) -> Result<Postgres, BenchError> {
        let admin = connect(url).await?;
        let name = format!("outbox_bench_{}", Uuid::new_v4().simple());
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.map_err(BenchError::ground)?;
        let url = with_database(url, &name);
        let client = connect(&url).await?;
        client.batch_execute(&outbox::migrations::sql(outbox::Database::Postgres)).await.map_err(BenchError::ground)?;
        Ok(Postgres { admin, client, name, url, pin: None })
    }
}

async fn connect(url: &str) -> Result<Client, BenchError> {
    let address = Address::parse(url).map_err(|(problem, _help)| BenchError::ground(problem))?;
    let (client, connection) = address.connect().await.map_err(BenchError::ground)?;
    tokio::spawn(async move {
        // It ends with an error when the server goes away; whoever uses the client is told.
        let _ = connection.await;
    });
    Ok(client)
}

#[async_trait]
impl Ground for Postgres {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn fill(&mut self, bench: &DrainBench) -> Result<(), BenchError> {
        let sql = "-- bench_fill
            INSERT INTO outbox_messages (topic, payload, ordering_key)
            SELECT 'bench.drain', rpad('{\"n\":' || n || ',\"text\":\"', $2 - 2, 'x') || '\"}',
                   CASE WHEN $3::bigint > 0 THEN (n % greatest($1 / greatest($3::bigint, 1), 1))::text END
            FROM generate_series(1::bigint, $1::bigint) AS n";
        let (messages, size, per_key) =
            (bench.messages.cast_signed(), i32::try_from(bench.payload).unwrap_or(300), bench.per_key.cast_signed());
        self.client.execute(sql, &[&messages, &size, &per_key]).await.map_err(BenchError::ground)?;
        self.client.batch_execute("VACUUM ANALYZE outbox_messages").await.map_err(BenchError::ground)
    }

    async fn floor(&mut self, batch: i64) -> Result<u64, BenchError> {
        let read = "-- bench_read
            SELECT * FROM outbox_messages WHERE seq > $1 ORDER BY seq LIMIT $2";
        let delete = "-- bench_delete
            DELETE FROM outbox_messages WHERE seq = ANY($1)";
        let read = self.client.prepare(read).await.map_err(BenchError::ground)?;
        let delete = self.client.prepare(delete).await.map_err(BenchError::ground)?;
        let (mut last, mut deleted) = (0_i64, 0);
        loop {
            let rows = self.client.query(&read, &[&last, &batch]).await.map_err(BenchError::ground)?;
            let seqs: Vec<i64> = rows.iter().map(|row| row.get("seq")).collect();
            let Some(highest) = seqs.last() else { return Ok(deleted) };
            last = *highest;
            deleted += self.client.execute(&delete, &[&seqs]).await.map_err(BenchError::ground)?;
        }
    }

    async fn pin(&mut self) -> Result<(), BenchError> {
        let client = connect(&self.url).await?;
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox_meta")
            .await
            .map_err(BenchError::ground)?;
        self.pin = Some(client);
        Ok(())
    }

    async fn remove(self: Box<Self>) -> Result<(), BenchError> {
        let Postgres { admin, client, name, pin, .. } = *self;
        drop((client, pin));
        admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.map_err(BenchError::ground)
    }
}
