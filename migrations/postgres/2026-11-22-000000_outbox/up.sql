-- The outbox: messages committed with business data, the deliveries that must wait, and the dead letters.

-- Committed and not yet settled. A message is pending because its row exists; there is no status.
-- `xid` stands first: defaults are evaluated in column order, so a transaction owns its xid before it draws a `seq`.
-- The relay's reader depends on that. Producers set neither `xid`, `seq` nor `id`.
CREATE TABLE outbox_messages (
    xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    seq            bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    id             uuid        NOT NULL DEFAULT gen_random_uuid(),
    partition_no   smallint    NOT NULL GENERATED ALWAYS AS
                               ((hashtextextended(coalesce(ordering_key, id::text), 0) & 31)::smallint) STORED,
    topic          text        NOT NULL,
    ordering_key   text,
    payload        text,
    payload_bytes  bytea,
    content_type   text        NOT NULL DEFAULT 'application/json',
    headers        text        NOT NULL DEFAULT '{}',
    destination    text,
    deliver_at     timestamptz,
    expires_at     timestamptz,
    operation_id   uuid,
    dedup_key      text,
    version        smallint    NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT topic_is_dotted_segments
        CHECK (octet_length(topic) <= 128 AND topic ~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$'),
    CONSTRAINT ordering_key_fits CHECK (octet_length(ordering_key) <= 255),
    CONSTRAINT payload_is_text_or_bytes CHECK (num_nonnulls(payload, payload_bytes) = 1)
);

-- A queue lives on its newest dead rows: vacuum early and without pauses.
ALTER TABLE outbox_messages SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);

-- Exceptional state only: one row per (message, destination) that must wait.
-- `destination` is '' while the message is not routed yet.
CREATE TABLE outbox_deliveries (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id       uuid        NOT NULL,
    seq              bigint      NOT NULL,
    partition_no     smallint    NOT NULL,
    topic            text        NOT NULL,
    ordering_key     text,
    payload          text,
    payload_bytes    bytea,
    content_type     text        NOT NULL,
    headers          text        NOT NULL,
    deliver_at       timestamptz,
    expires_at       timestamptz,
    operation_id     uuid,
    dedup_key        text,
    version          smallint    NOT NULL,
    created_at       timestamptz NOT NULL,
    destination      text        NOT NULL,
    state            text        NOT NULL,
    blocked          boolean     NOT NULL DEFAULT false,
    suspect          boolean     NOT NULL DEFAULT false,
    in_order         boolean     NOT NULL DEFAULT true,
    attempted_by     uuid,
    deaths           integer     NOT NULL DEFAULT 0,
    life             integer     NOT NULL DEFAULT 0,
    attempts         integer     NOT NULL DEFAULT 0,
    due_at           timestamptz NOT NULL,
    first_attempt_at timestamptz,
    redriven_from    bigint,
    last_verdict     text,
    last_error       text,
    history          text        NOT NULL DEFAULT '[]',
    CONSTRAINT one_delivery_per_destination UNIQUE (message_id, destination, life)
);
CREATE INDEX delivery_by_due ON outbox_deliveries (destination, blocked, due_at);
CREATE INDEX delivery_by_key ON outbox_deliveries (destination, ordering_key, seq);
CREATE INDEX delivery_by_partition ON outbox_deliveries (partition_no);
-- What waits for a route is searched topic by topic when the routes change. The other rows pay nothing for it.
CREATE INDEX unrouted_by_topic ON outbox_deliveries (partition_no, topic, id)
    WHERE destination = '' AND state = 'unrouted';

-- Given up, with the reason and the attempts. Redriven or discarded by a person.
CREATE TABLE outbox_dead_letters (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id       uuid        NOT NULL,
    seq              bigint      NOT NULL,
    partition_no     smallint    NOT NULL,
    topic            text        NOT NULL,
    ordering_key     text,
    payload          text,
    payload_bytes    bytea,
    content_type     text        NOT NULL,
    headers          text        NOT NULL,
    deliver_at       timestamptz,
    expires_at       timestamptz,
    operation_id     uuid,
    dedup_key        text,
    version          smallint    NOT NULL,
    created_at       timestamptz NOT NULL,
    destination      text        NOT NULL,
    in_order         boolean     NOT NULL,
    life             integer     NOT NULL,
    attempts         integer     NOT NULL,
    first_attempt_at timestamptz,
    redriven_from    bigint,
    last_verdict     text,
    last_error       text,
    history          text        NOT NULL,
    reason           text        NOT NULL,
    fingerprint      text        NOT NULL,
    blocks_key       boolean     NOT NULL,
    died_at          timestamptz NOT NULL,
    CONSTRAINT one_dead_letter_per_life UNIQUE (message_id, destination, life)
);
CREATE INDEX dead_letter_by_key ON outbox_dead_letters (destination, blocks_key, ordering_key);

-- Ownership between relays. The row is the lock of every write that is not the plain DELETE of delivered messages.
CREATE TABLE outbox_partitions (
    partition_no smallint PRIMARY KEY,
    owner        uuid,
    epoch        bigint   NOT NULL DEFAULT 0
);
INSERT INTO outbox_partitions (partition_no) SELECT generate_series(0, 31);

-- One row per running relay; alive while `beat` changes, dead when it stood still for `lease_ms`.
CREATE TABLE outbox_relays (
    id         uuid        PRIMARY KEY,
    name       text        NOT NULL,
    version    text        NOT NULL,
    lease_ms   bigint      NOT NULL,
    beat       bigint      NOT NULL DEFAULT 0,
    draining   boolean     NOT NULL DEFAULT false,
    serves     text        NOT NULL DEFAULT '[]',
    circuits   text        NOT NULL DEFAULT '[]',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What messages can be routed to. `patterns` is a JSON array of topic patterns.
CREATE TABLE outbox_destinations (
    name         text        PRIMARY KEY,
    patterns     text        NOT NULL,
    ordering     text        NOT NULL DEFAULT 'key',
    paused_at    timestamptz,
    paused_by    text,
    pause_reason text,
    held_until   timestamptz,
    served_at    timestamptz
);

-- Tracked messages as seen by whoever waits for the result.
CREATE TABLE outbox_operations (
    id              uuid        PRIMARY KEY,
    message_id      uuid,
    seq             bigint,
    topic           text        NOT NULL,
    status          text        NOT NULL DEFAULT 'pending',
    attempt         integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    progress        text,
    result          bytea,
    result_type     text,
    result_location text,
    error           text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz
);
CREATE INDEX operation_by_expiry ON outbox_operations (expires_at);

-- The consumer's once-only table.
CREATE TABLE outbox_inbox (
    consumer    text        NOT NULL,
    message_id  text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, message_id)
);
CREATE INDEX inbox_by_received ON outbox_inbox (received_at);

CREATE TABLE outbox_dedup_keys (
    topic      text        NOT NULL,
    dedup_key  text        NOT NULL,
    message_id uuid        NOT NULL,
    seq        bigint,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (topic, dedup_key)
);
CREATE INDEX dedup_key_by_expiry ON outbox_dedup_keys (expires_at);

-- Who changed what by hand.
CREATE TABLE outbox_audit (
    id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text        NOT NULL,
    action text        NOT NULL,
    target text        NOT NULL,
    reason text
);

-- The archive of delivered messages; empty unless retention asks for it.
CREATE TABLE outbox_delivered (
    message_id    uuid        NOT NULL,
    seq           bigint      NOT NULL,
    topic         text        NOT NULL,
    ordering_key  text,
    payload       text,
    payload_bytes bytea,
    content_type  text        NOT NULL,
    headers       text        NOT NULL,
    version       smallint    NOT NULL,
    created_at    timestamptz NOT NULL,
    delivered_at  timestamptz NOT NULL,
    PRIMARY KEY (message_id)
);
CREATE INDEX delivered_by_time ON outbox_delivered (delivered_at);

-- One row: who this outbox is, the schema it has, and how often the routing changed.
CREATE TABLE outbox_meta (
    outbox_id      uuid    NOT NULL DEFAULT gen_random_uuid(),
    schema_version integer NOT NULL,
    routes_version bigint  NOT NULL DEFAULT 0
);
INSERT INTO outbox_meta (schema_version) VALUES (1);

-- For producers in any language: SELECT outbox_enqueue('order.placed', '{"id":1}', ordering_key => '1').
-- Like a plain INSERT it belongs to the transaction that calls it.
CREATE FUNCTION outbox_enqueue(
    topic text,
    payload text,
    ordering_key text DEFAULT NULL,
    content_type text DEFAULT 'application/json',
    headers text DEFAULT '{}',
    destination text DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL,
    version integer DEFAULT 1
) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    INSERT INTO outbox_messages
        (topic, payload, ordering_key, content_type, headers, destination, deliver_at, expires_at, version)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::smallint)
    RETURNING id
$$;

CREATE FUNCTION outbox_enqueue(
    topic text,
    payload bytea,
    ordering_key text DEFAULT NULL,
    content_type text DEFAULT 'application/octet-stream',
    headers text DEFAULT '{}',
    destination text DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL,
    version integer DEFAULT 1
) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    INSERT INTO outbox_messages
        (topic, payload_bytes, ordering_key, content_type, headers, destination, deliver_at, expires_at, version)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::smallint)
    RETURNING id
$$;
