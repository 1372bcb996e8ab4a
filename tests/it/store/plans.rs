//! The hot statements on PostgreSQL stay index look-ups, whatever the statistics say.

use diesel::connection::SimpleConnection;
use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types::Text};
use outbox_tests::database::{Kind, TestDatabase};
use relay::store::postgres::{SESSION_SETTINGS, hot_statements};

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text, column_name = "QUERY PLAN")]
    line: String,
}

/// The generic plan of each hot statement, over tables the planner believes empty and over full ones.
#[test]
fn hot_statements_on_postgres_look_nothing_up_without_an_index() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let fill = "INSERT INTO outbox_messages (topic, payload, ordering_key) \
                SELECT 't', repeat('x', 300), (n % 100)::text FROM generate_series(1, 20000) n; \
                INSERT INTO outbox_deliveries (message_id, seq, partition_no, topic, ordering_key, payload, \
                    content_type, headers, version, created_at, destination, state, due_at) \
                SELECT gen_random_uuid(), n, n % 32, 't', (n % 100)::text, 'x', 'a', '{}', 1, now(), \
                    'd' || n % 3, 'retry', now() FROM generate_series(1, 20000) n; \
                ANALYZE;";
    let mut conn = database.postgres();
    conn.batch_execute("ANALYZE").unwrap();
    conn.batch_execute(SESSION_SETTINGS).unwrap();
    for full in [false, true] {
        if full {
            conn.batch_execute(fill).unwrap();
        }
        for (name, text, arguments) in hot_statements() {
            let arguments = arguments.join(", ");
            conn.batch_execute(&format!("DEALLOCATE ALL; PREPARE {name} AS {text}")).unwrap();
            let plan: Vec<Line> = sql_query(format!("EXPLAIN EXECUTE {name}({arguments})")).load(&mut conn).unwrap();
            let plan = plan.into_iter().map(|row| row.line).collect::<Vec<_>>().join("\n");
            println!("{name}, full: {full}\n{plan}\n");
            assert!(plan.contains("Index"), "{name}:\n{plan}");
            for line in plan.lines().filter(|line| line.contains("Seq Scan") || line.contains("Bitmap")) {
                assert!(line.contains("outbox_meta"), "{name} reads a table:\n{plan}");
            }
        }
    }
}
