-- The outbox: messages committed with business data, the deliveries that must wait, and the dead letters.
--
-- Times are whole milliseconds since 1970 in UTC, ids are 16 bytes, flags are 0 or 1. SQLite lets any column hold any
-- type, so the checks say which one is meant. The database has to be in UTF-8 (the default).

-- Committed and not yet settled. A message is pending because its row exists; there is no status.
-- Producers set neither `seq` nor `id`.
CREATE TABLE outbox_messages (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             BLOB    NOT NULL DEFAULT (randomblob(16)),
    -- There is no hash function here. An id ends in random bits. A key is sampled at its end, its beginning and its
    -- middle, so that counters, random ids and addresses with a common ending spread over the partitions alike.
    partition_no   INTEGER NOT NULL GENERATED ALWAYS AS (
        CASE WHEN ordering_key IS NULL
        THEN instr('123456789ABCDEF', substr(hex(id), 32, 1)) + 16 * (instr('13579BDF', substr(hex(id), 31, 1)) > 0)
        ELSE (
              71957 * coalesce(unicode(substr(ordering_key, -1, 1)), 0)
            + 958711 * coalesce(unicode(substr(ordering_key, -2, 1)), 0)
            + 338569 * coalesce(unicode(substr(ordering_key, -3, 1)), 0)
            + 575685 * coalesce(unicode(substr(ordering_key, -4, 1)), 0)
            + 393332 * coalesce(unicode(substr(ordering_key, -5, 1)), 0)
            + 18269 * coalesce(unicode(substr(ordering_key, -6, 1)), 0)
            + 737169 * coalesce(unicode(substr(ordering_key, -7, 1)), 0)
            + 806656 * coalesce(unicode(substr(ordering_key, -8, 1)), 0)
            + 699897 * coalesce(unicode(substr(ordering_key, -9, 1)), 0)
            + 911335 * coalesce(unicode(substr(ordering_key, 1, 1)), 0)
            + 927895 * coalesce(unicode(substr(ordering_key, 2, 1)), 0)
            + 765240 * coalesce(unicode(substr(ordering_key, 3, 1)), 0)
            + 12621 * coalesce(unicode(substr(ordering_key, 4, 1)), 0)
            + 963667 * coalesce(unicode(substr(ordering_key, length(ordering_key) / 2, 1)), 0)
        ) % 8191 & 31 END
    ) STORED,
    topic          TEXT    NOT NULL,
    ordering_key   TEXT,
    payload        BLOB    NOT NULL,
    content_type   TEXT    NOT NULL DEFAULT 'application/json',
    headers        TEXT    NOT NULL DEFAULT '{}',
    destination    TEXT,
    deliver_at     INTEGER,
    expires_at     INTEGER,
    operation_id   BLOB,
    dedup_key      TEXT,
    version        INTEGER NOT NULL DEFAULT 1,
    created_at     INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    -- The relay reads upwards from 1.
    CONSTRAINT seq_is_positive CHECK (seq > 0),
    CONSTRAINT id_is_16_bytes CHECK (typeof(id) = 'blob' AND length(id) = 16),
    -- GLOB stops at a NUL character, so that one is looked for by itself.
    CONSTRAINT topic_is_dotted_segments CHECK (
        typeof(topic) = 'text' AND length(topic) BETWEEN 1 AND 128
        AND topic NOT GLOB '*[^A-Za-z0-9_.-]*' AND topic NOT GLOB '.*' AND topic NOT GLOB '*.'
        AND topic NOT GLOB '*..*' AND instr(CAST(topic AS BLOB), x'00') = 0),
    CONSTRAINT ordering_key_fits CHECK (
        ordering_key IS NULL
        OR typeof(ordering_key) = 'text' AND length(CAST(ordering_key AS BLOB)) <= 255
            AND instr(CAST(ordering_key AS BLOB), x'00') = 0),
    CONSTRAINT payload_is_text_or_bytes CHECK (typeof(payload) IN ('text', 'blob')),
    CONSTRAINT headers_are_text CHECK (typeof(content_type) = 'text' AND typeof(headers) = 'text'),
    CONSTRAINT operation_id_is_16_bytes
        CHECK (operation_id IS NULL OR typeof(operation_id) = 'blob' AND length(operation_id) = 16),
    CONSTRAINT version_is_integer CHECK (typeof(version) = 'integer'),
    CONSTRAINT times_are_milliseconds CHECK (
        typeof(created_at) = 'integer' AND typeof(deliver_at) IN ('integer', 'null')
        AND typeof(expires_at) IN ('integer', 'null'))
);

-- Exceptional state only: one row per (message, destination) that must wait.
-- `destination` is '' while the message is not routed yet.
CREATE TABLE outbox_deliveries (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id       BLOB    NOT NULL,
    seq              INTEGER NOT NULL,
    partition_no     INTEGER NOT NULL,
    topic            TEXT    NOT NULL,
    ordering_key     TEXT,
    payload          BLOB    NOT NULL,
    content_type     TEXT    NOT NULL,
    headers          TEXT    NOT NULL,
    deliver_at       INTEGER,
    expires_at       INTEGER,
    operation_id     BLOB,
    dedup_key        TEXT,
    version          INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    destination      TEXT    NOT NULL,
    state            TEXT    NOT NULL,
    blocked          INTEGER NOT NULL DEFAULT 0,
    suspect          INTEGER NOT NULL DEFAULT 0,
    in_order         INTEGER NOT NULL DEFAULT 1,
    attempted_by     BLOB,
    deaths           INTEGER NOT NULL DEFAULT 0,
    life             INTEGER NOT NULL DEFAULT 0,
    attempts         INTEGER NOT NULL DEFAULT 0,
    due_at           INTEGER NOT NULL,
    first_attempt_at INTEGER,
    redriven_from    INTEGER,
    last_verdict     TEXT,
    last_error       TEXT,
    history          TEXT    NOT NULL DEFAULT '[]',
    CONSTRAINT one_delivery_per_destination UNIQUE (message_id, destination, life),
    CONSTRAINT flags_are_0_or_1 CHECK (blocked IN (0, 1) AND suspect IN (0, 1) AND in_order IN (0, 1)),
    CONSTRAINT times_are_milliseconds
        CHECK (typeof(due_at) = 'integer' AND typeof(first_attempt_at) IN ('integer', 'null'))
);
CREATE INDEX delivery_by_due ON outbox_deliveries (destination, blocked, due_at);
CREATE INDEX delivery_by_key ON outbox_deliveries (destination, ordering_key, seq);
CREATE INDEX delivery_by_partition ON outbox_deliveries (partition_no);
-- What waits for a route is searched topic by topic when the routes change. The other rows pay nothing for it.
CREATE INDEX unrouted_by_topic ON outbox_deliveries (partition_no, topic)
    WHERE destination = '' AND state = 'unrouted';

-- Given up, with the reason and the attempts. Redriven or discarded by a person.
CREATE TABLE outbox_dead_letters (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id       BLOB    NOT NULL,
    seq              INTEGER NOT NULL,
    partition_no     INTEGER NOT NULL,
    topic            TEXT    NOT NULL,
    ordering_key     TEXT,
    payload          BLOB    NOT NULL,
    content_type     TEXT    NOT NULL,
    headers          TEXT    NOT NULL,
    deliver_at       INTEGER,
    expires_at       INTEGER,
    operation_id     BLOB,
    dedup_key        TEXT,
    version          INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    destination      TEXT    NOT NULL,
    in_order         INTEGER NOT NULL,
    life             INTEGER NOT NULL,
    attempts         INTEGER NOT NULL,
    first_attempt_at INTEGER,
    redriven_from    INTEGER,
    last_verdict     TEXT,
    last_error       TEXT,
    history          TEXT    NOT NULL,
    reason           TEXT    NOT NULL,
    fingerprint      TEXT    NOT NULL,
    blocks_key       INTEGER NOT NULL,
    died_at          INTEGER NOT NULL,
    CONSTRAINT one_dead_letter_per_life UNIQUE (message_id, destination, life),
    CONSTRAINT flags_are_0_or_1 CHECK (blocks_key IN (0, 1) AND in_order IN (0, 1)),
    CONSTRAINT times_are_milliseconds
        CHECK (typeof(died_at) = 'integer' AND typeof(first_attempt_at) IN ('integer', 'null'))
);
CREATE INDEX dead_letter_by_key ON outbox_dead_letters (destination, blocks_key, ordering_key);

-- Ownership between relays: every write that is not the plain DELETE of delivered messages asks this table first.
CREATE TABLE outbox_partitions (
    partition_no INTEGER PRIMARY KEY,
    owner        BLOB,
    epoch        INTEGER NOT NULL DEFAULT 0
);
INSERT INTO outbox_partitions (partition_no)
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 31)
    SELECT n FROM numbers;

-- One row per running relay; alive while `beat` changes, dead when it stood still for `lease_ms`.
CREATE TABLE outbox_relays (
    id         BLOB    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    lease_ms   INTEGER NOT NULL,
    beat       INTEGER NOT NULL DEFAULT 0,
    draining   INTEGER NOT NULL DEFAULT 0,
    serves     TEXT    NOT NULL DEFAULT '[]',
    circuits   TEXT    NOT NULL DEFAULT '[]',
    started_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER))
);

-- What messages can be routed to. `patterns` is a JSON array of topic patterns.
CREATE TABLE outbox_destinations (
    name         TEXT NOT NULL PRIMARY KEY,
    patterns     TEXT NOT NULL,
    ordering     TEXT NOT NULL DEFAULT 'key',
    paused_at    INTEGER,
    paused_by    TEXT,
    pause_reason TEXT,
    held_until   INTEGER,
    served_at    INTEGER
);

-- Tracked messages as seen by whoever waits for the result.
CREATE TABLE outbox_operations (
    id              BLOB    NOT NULL PRIMARY KEY,
    message_id      BLOB,
    seq             INTEGER,
    topic           TEXT    NOT NULL,
    status          TEXT    NOT NULL DEFAULT 'pending',
    attempt         INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER,
    progress        TEXT,
    result          BLOB,
    result_type     TEXT,
    result_location TEXT,
    error           TEXT,
    created_at      INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    updated_at      INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    expires_at      INTEGER
);
CREATE INDEX operation_by_expiry ON outbox_operations (expires_at);

-- The consumer's once-only table.
CREATE TABLE outbox_inbox (
    consumer    TEXT    NOT NULL,
    message_id  TEXT    NOT NULL,
    received_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    PRIMARY KEY (consumer, message_id)
);
CREATE INDEX inbox_by_received ON outbox_inbox (received_at);

CREATE TABLE outbox_dedup_keys (
    topic      TEXT    NOT NULL,
    dedup_key  TEXT    NOT NULL,
    message_id BLOB    NOT NULL,
    seq        INTEGER,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (topic, dedup_key)
);
CREATE INDEX dedup_key_by_expiry ON outbox_dedup_keys (expires_at);

-- Who changed what by hand.
CREATE TABLE outbox_audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    actor  TEXT    NOT NULL,
    action TEXT    NOT NULL,
    target TEXT    NOT NULL,
    reason TEXT
);

-- The archive of delivered messages; empty unless retention asks for it.
CREATE TABLE outbox_delivered (
    message_id    BLOB    NOT NULL PRIMARY KEY,
    seq           INTEGER NOT NULL,
    topic         TEXT    NOT NULL,
    ordering_key  TEXT,
    payload       BLOB    NOT NULL,
    content_type  TEXT    NOT NULL,
    headers       TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    delivered_at  INTEGER NOT NULL
);
CREATE INDEX delivered_by_time ON outbox_delivered (delivered_at);

-- One row: who this outbox is, the schema it has, and how often the routing changed.
CREATE TABLE outbox_meta (
    outbox_id      BLOB    NOT NULL DEFAULT (randomblob(16)),
    schema_version INTEGER NOT NULL,
    routes_version INTEGER NOT NULL DEFAULT 0
);
INSERT INTO outbox_meta (schema_version) VALUES (1);
