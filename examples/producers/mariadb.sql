-- A producer in plain SQL, for MariaDB:  mariadb shop < mariadb.sql
--
-- The outbox' tables have to exist: `relay migrate up` creates them. Tables that take part in a transaction have to be
-- InnoDB's, as these are by default.

CREATE TABLE IF NOT EXISTS orders (
    id          BIGINT       NOT NULL AUTO_INCREMENT PRIMARY KEY,
    customer    VARCHAR(100) NOT NULL,
    total_cents INT          NOT NULL
);

-- The order and its message, both or neither. `seq` and `id` are the database's to choose. The client ends at the first
-- mistake, and a transaction that is left open is rolled back; a program has to roll back by itself. Keep DDL (CREATE,
-- ALTER …) out of it: that would commit what came before.
START TRANSACTION;
INSERT INTO orders (customer, total_cents) VALUES ('ada', 4200);
INSERT INTO outbox_messages (topic, ordering_key, payload)
VALUES ('order.placed', 'ada', json_object('order_id', last_insert_id(), 'customer', 'ada', 'total_cents', 4200));
COMMIT;

-- With headers, and not before an hour has passed. Times are in UTC, whatever the time zone of the session.
START TRANSACTION;
INSERT INTO outbox_messages (topic, ordering_key, payload, headers, deliver_at)
VALUES ('order.reminder', 'ada', '{"customer": "ada"}', '{"x-tenant": "shop"}', utc_timestamp(6) + INTERVAL 1 HOUR);
COMMIT;

-- What is rolled back was never there: nobody is told of this one.
START TRANSACTION;
INSERT INTO orders (customer, total_cents) VALUES ('ada', 1);
INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{"customer": "ada", "total_cents": 1}');
ROLLBACK;
