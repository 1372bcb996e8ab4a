//! The hot statements on PostgreSQL stay index look-ups, whatever the statistics say.

use diesel::connection::SimpleConnection;
use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types::Text};
use outbox_tests::database::{Kind, TestDatabase};
use relay::store::postgres::hot_statements;

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text, column_name = "QUERY PLAN")]
    line: String,
}

/// The plan of each hot statement over full tables, and of those that keep their plan also over empty ones.
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
    for full in [false, true] {
        if full {
            conn.batch_execute(fill).unwrap();
        }
        for hot in hot_statements().into_iter().filter(|hot| full || hot.is_planned_once) {
            let (name, text, arguments) = (hot.name, hot.text, hot.arguments.join(", "));
            conn.batch_execute(&format!("DEALLOCATE ALL; {} PREPARE {name} AS {text}", hot.settings)).unwrap();
            let plan: Vec<Line> = sql_query(format!("EXPLAIN EXECUTE {name}({arguments})")).load(&mut conn).unwrap();
            let plan = plan.into_iter().map(|row| row.line).collect::<Vec<_>>().join("\n");
            println!("{name}, full: {full}\n{plan}\n");
            assert!(plan.contains("Index"), "{name}:\n{plan}");
            for line in plan.lines().filter(|line| line.contains("Seq Scan") || line.contains("Bitmap")) {
                assert!(line.contains("outbox_meta"), "{name} reads a table:\n{plan}");
            }
            // An index read from one end to the other is no look-up either.
            let lines: Vec<&str> = plan.lines().collect();
            for pair in lines.windows(2).filter(|pair| pair[0].contains(" on outbox_") && pair[0].contains("Index")) {
                assert!(pair[1].contains("Index Cond"), "{name} reads all of an index:\n{plan}");
            }
            // The order of waiting rows comes from the index; sorting them would mean reading all of them.
            assert!(!plan.contains("Sort Key: d."), "{name} sorts rows:\n{plan}");
        }
    }
}
