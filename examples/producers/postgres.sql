-- A producer in plain SQL, for PostgreSQL:  psql postgres://localhost/shop -f postgres.sql
--
-- The outbox' tables have to exist: `relay migrate up` creates them.

-- Ends at the first mistake instead of going on. Without it psql would run what follows a failed statement.
\set ON_ERROR_STOP on

CREATE TABLE IF NOT EXISTS orders (
    id          bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer    text    NOT NULL,
    total_cents integer NOT NULL
);

-- The order and its message, both or neither. `seq`, `id` and `xid` are the database's to choose.
BEGIN;
WITH placed AS (
    INSERT INTO orders (customer, total_cents) VALUES ('ada', 4200) RETURNING id, customer, total_cents
)
INSERT INTO outbox_messages (topic, ordering_key, payload)
SELECT 'order.placed', customer, json_build_object('order_id', id, 'customer', customer, 'total_cents', total_cents)
FROM placed;
COMMIT;

-- The same with the function that comes with the tables, which returns the id of the message. Options have names, as
-- `ordering_key` here; `deliver_at`, `expires_at`, `headers`, `destination` and `version` are others.
BEGIN;
INSERT INTO orders (customer, total_cents) VALUES ('ada', 1500);
SELECT outbox_enqueue('order.paid', '{"customer": "ada", "total_cents": 1500}', ordering_key => 'ada') AS message_id;
COMMIT;

-- What is rolled back was never there: nobody is told of this one.
BEGIN;
INSERT INTO orders (customer, total_cents) VALUES ('ada', 1);
SELECT outbox_enqueue('order.placed', '{"customer": "ada", "total_cents": 1}') AS message_id;
ROLLBACK;
