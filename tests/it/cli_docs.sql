-- The outbox the sessions of docs/CLI.md are played in: one relay, two destinations, the warehouse paused, a third that no
-- relay serves any more, one key that waits, three dead letters of two kinds, one of which blocks its key, and a message
-- nobody wants. Times are counted back from now.
-- Errors, histories and fingerprints are what the relay itself would have written.
INSERT INTO outbox_relays (id, name, version, lease_ms, serves, started_at) VALUES
    (x'0199c0de000070008000000000000101', 'shop-1', '0.1.0', 5000, '["billing","warehouse"]',
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 93780000);
UPDATE outbox_partitions SET owner = x'0199c0de000070008000000000000101', epoch = 3;
INSERT INTO outbox_destinations (name, patterns, paused_at, paused_by, pause_reason, served_at) VALUES
    ('billing', '["order.*"]', NULL, NULL, NULL, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 93780000),
    ('warehouse', '["order.placed","order.cancelled"]', CAST(unixepoch('subsec') * 1000 AS INTEGER) - 2520000,
     'grace@laptop', 'stock-taking until noon', CAST(unixepoch('subsec') * 1000 AS INTEGER) - 93780000),
    ('fax', '["order.cancelled"]', NULL, NULL, NULL, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 93790000);

INSERT INTO outbox_messages (seq, id, topic, ordering_key, payload, headers, created_at) VALUES
    (4711, x'0199c0de000070008000000000000001', 'order.placed', 'order-7', '{"order_id":7,"total_cents":4200}',
     '{"x-tenant":"7"}', CAST(unixepoch('subsec') * 1000 AS INTEGER) - 30000);

INSERT INTO outbox_deliveries (message_id, seq, partition_no, topic, ordering_key, payload, content_type, headers, version,
    created_at, destination, state, blocked, in_order, attempts, due_at, first_attempt_at, last_verdict, last_error, history)
VALUES
    (x'0199c0de000070008000000000000002', 4700, 5, 'order.placed', 'order-5', '{"order_id":5}', 'application/json', '{}', 1,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 600000, 'billing', 'retry', 0, 1, 4,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) + 240000, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 599000,
     'retry', '503: down for maintenance',
     '[{"n":4,"at":"' || strftime('%Y-%m-%dT%H:%M:%f', 'now', '-60 seconds') || '204517Z","ms":12,"verdict":"retry","code":"503","relay":"shop-1","maybe":false,"text":"down for maintenance"}]'),
    (x'0199c0de000070008000000000000003', 4705, 5, 'order.paid', 'order-5', '{"order_id":5}', 'application/json', '{}', 1,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 300000, 'billing', 'blocked', 1, 1, 0,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 300000, NULL, NULL, NULL, '[]'),
    (x'0199c0de000070008000000000000004', 4706, 9, 'user.left', NULL, '{"user_id":3}', 'application/json', '{}', 1,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 200000, '', 'unrouted', 0, 0, 0,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 200000, NULL, NULL, NULL, '[]'),
    (x'0199c0de000070008000000000000008', 4690, 3, 'order.placed', 'order-3', '{"order_id":3}', 'application/json', '{}', 1,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 700000, 'warehouse', 'blocked', 1, 1, 0,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 700000, NULL, NULL, NULL, '[]');

INSERT INTO outbox_dead_letters (id, message_id, seq, partition_no, topic, ordering_key, payload, content_type, headers,
    version, created_at, destination, life, attempts, in_order, last_verdict, last_error, history, reason, fingerprint,
    blocks_key, died_at, first_attempt_at)
VALUES
    (16, x'0199c0de000070008000000000000005', 4501, 1, 'order.placed', 'order-1', '{"order_id":1,"total":"12,50"}',
     'application/json', '{}', 1, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 7200000, 'billing', 0, 1, 1, 'reject',
     '422: total must be a number',
     '[{"n":1,"at":"' || strftime('%Y-%m-%dT%H:%M:%f', 'now', '-7199 seconds') || '204517Z","ms":31,"verdict":"reject","code":"422","relay":"shop-1","maybe":false,"text":"total must be a number"}]',
     'rejected', '0e107dff', 0, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 7199000,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 7200000),
    (17, x'0199c0de000070008000000000000006', 4502, 2, 'order.placed', 'order-2', '{"order_id":2,"total":"3,10"}',
     'application/json', '{}', 1, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 7100000, 'billing', 0, 1, 1, 'reject',
     '422: total must be a number',
     '[{"n":1,"at":"' || strftime('%Y-%m-%dT%H:%M:%f', 'now', '-7099 seconds') || '204517Z","ms":29,"verdict":"reject","code":"422","relay":"shop-1","maybe":false,"text":"total must be a number"}]', 'rejected', '0e107dff', 0,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 7099000, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 7100000),
    (18, x'0199c0de000070008000000000000007', 4503, 3, 'order.cancelled', 'order-3', '{"order_id":3}',
     'application/json', '{}', 1, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 90000000, 'warehouse', 0, 20, 1, 'retry',
     'connect: tcp connect error: Connection refused (os error 111)', '[]', 'exhausted', 'fbf02257', 1, CAST(unixepoch('subsec') * 1000 AS INTEGER) - 3600000,
     CAST(unixepoch('subsec') * 1000 AS INTEGER) - 90000000);
