-- A producer in plain SQL, for SQLite:  sqlite3 -bail shop.db < sqlite.sql
--
-- The outbox' tables have to exist: `relay migrate up` creates them.

-- Waits for another writer instead of failing (in a program: PRAGMA busy_timeout), and a commit survives a power cut.
.timeout 10000
PRAGMA synchronous = FULL;

CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, total_cents INTEGER NOT NULL);

-- The order and its message, both or neither. `seq` and `id` are the database's to choose. IMMEDIATE, because a
-- transaction that reads first and writes later may find that it cannot.
BEGIN IMMEDIATE;
INSERT INTO orders (customer, total_cents) VALUES ('ada', 4200);
INSERT INTO outbox_messages (topic, ordering_key, payload)
VALUES ('order.placed', 'ada', json_object('order_id', last_insert_rowid(), 'customer', 'ada', 'total_cents', 4200));
COMMIT;

-- With headers, and not before an hour has passed. Times are milliseconds since 1970.
BEGIN IMMEDIATE;
INSERT INTO outbox_messages (topic, ordering_key, payload, headers, deliver_at)
VALUES ('order.reminder', 'ada', '{"customer": "ada"}', '{"x-tenant": "shop"}', (strftime('%s', 'now') + 3600) * 1000);
COMMIT;

-- What is rolled back was never there: nobody is told of this one.
BEGIN IMMEDIATE;
INSERT INTO orders (customer, total_cents) VALUES ('ada', 1);
INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{"customer": "ada", "total_cents": 1}');
ROLLBACK;
