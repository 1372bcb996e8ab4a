-- The outbox: messages committed with business data, the deliveries that must wait, and the dead letters.
--
-- For MariaDB from 10.11 (tested) and MySQL from 8.0.16 (written for, not tried). DDL commits by itself here: every
-- statement can be repeated, so that a run that was cut off is finished by running the file again.
--
-- Clients are not trusted to be strict or to speak utf8mb4. In a loose sql_mode the server shortens what is too long
-- and turns nonsense into zeros, silently. So columns are wider than what their CHECK allows (what was shortened is
-- still too long), and whatever is compared byte by byte is VARBINARY: no text collation that respects trailing
-- spaces goes by the same name on both servers.

-- Committed and not yet settled. A message is pending because its row exists, there is no status.
-- Producers set neither `seq` nor `id`. `random_bytes` needs row-based (or mixed) replication.
CREATE TABLE IF NOT EXISTS outbox_messages (
    seq            BIGINT           NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id             BINARY(16)       NOT NULL DEFAULT (random_bytes(16)),
    partition_no   TINYINT UNSIGNED AS (crc32(coalesce(ordering_key, id)) & 31) STORED,
    topic          VARCHAR(256)     NOT NULL,
    ordering_key   VARBINARY(1024),
    payload        LONGBLOB,
    content_type   VARCHAR(255)     NOT NULL DEFAULT 'application/json',
    headers        LONGTEXT         NOT NULL DEFAULT ('{}'),
    destination    VARCHAR(255),
    deliver_at     DATETIME(6),
    expires_at     DATETIME(6),
    operation_id   BINARY(16),
    dedup_key      VARBINARY(1024),
    version        SMALLINT         NOT NULL DEFAULT 1,
    created_at     DATETIME(6)      NOT NULL DEFAULT (utc_timestamp(6)),
    -- Not one anchored pattern: its `$` would let a trailing newline through.
    CONSTRAINT topic_is_dotted_segments
        CHECK (octet_length(topic) BETWEEN 1 AND 128 AND topic NOT REGEXP '[^A-Za-z0-9_.-]'
               AND topic NOT LIKE '.%' AND topic NOT LIKE '%.' AND topic NOT LIKE '%..%'),
    CONSTRAINT ordering_key_fits CHECK (octet_length(ordering_key) <= 255),
    CONSTRAINT dedup_key_fits CHECK (octet_length(dedup_key) <= 255),
    -- Nullable and checked: a loose sql_mode would fill a missing NOT NULL payload with nothing.
    CONSTRAINT payload_is_given CHECK (payload IS NOT NULL),
    -- What a loose sql_mode makes of a time it cannot read is the year 0.
    CONSTRAINT times_are_real CHECK (year(deliver_at) > 0 AND year(expires_at) > 0)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Exceptional state only: one row per (message, destination) that must wait.
-- `destination` is '' while the message is not routed yet.
CREATE TABLE IF NOT EXISTS outbox_deliveries (
    id               BIGINT           NOT NULL AUTO_INCREMENT PRIMARY KEY,
    message_id       BINARY(16)       NOT NULL,
    seq              BIGINT           NOT NULL,
    partition_no     TINYINT UNSIGNED NOT NULL,
    topic            VARCHAR(256)     NOT NULL,
    ordering_key     VARBINARY(1024),
    payload          LONGBLOB         NOT NULL,
    content_type     VARCHAR(255)     NOT NULL,
    headers          LONGTEXT         NOT NULL,
    deliver_at       DATETIME(6),
    expires_at       DATETIME(6),
    operation_id     BINARY(16),
    dedup_key        VARBINARY(1024),
    version          SMALLINT         NOT NULL,
    created_at       DATETIME(6)      NOT NULL,
    destination      VARCHAR(255)     NOT NULL,
    state            VARCHAR(64)      NOT NULL,
    blocked          BOOLEAN          NOT NULL DEFAULT false,
    suspect          BOOLEAN          NOT NULL DEFAULT false,
    in_order         BOOLEAN          NOT NULL DEFAULT true,
    attempted_by     BINARY(16),
    deaths           INT              NOT NULL DEFAULT 0,
    life             INT              NOT NULL DEFAULT 0,
    attempts         INT              NOT NULL DEFAULT 0,
    due_at           DATETIME(6)      NOT NULL,
    first_attempt_at DATETIME(6),
    redriven_from    BIGINT,
    last_verdict     VARCHAR(64),
    last_error       LONGTEXT,
    history          LONGTEXT         NOT NULL DEFAULT ('[]'),
    CONSTRAINT one_delivery_per_destination UNIQUE (message_id, destination, life),
    INDEX delivery_by_due (destination, blocked, due_at),
    INDEX delivery_by_key (destination, ordering_key, seq),
    -- The last three are for what waits for a route, which is searched topic by topic when the routes change.
    INDEX delivery_by_partition (partition_no, destination, state, topic)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Given up, with the reason and the attempts. Redriven or discarded by a person.
CREATE TABLE IF NOT EXISTS outbox_dead_letters (
    id               BIGINT           NOT NULL AUTO_INCREMENT PRIMARY KEY,
    message_id       BINARY(16)       NOT NULL,
    seq              BIGINT           NOT NULL,
    partition_no     TINYINT UNSIGNED NOT NULL,
    topic            VARCHAR(256)     NOT NULL,
    ordering_key     VARBINARY(1024),
    payload          LONGBLOB         NOT NULL,
    content_type     VARCHAR(255)     NOT NULL,
    headers          LONGTEXT         NOT NULL,
    deliver_at       DATETIME(6),
    expires_at       DATETIME(6),
    operation_id     BINARY(16),
    dedup_key        VARBINARY(1024),
    version          SMALLINT         NOT NULL,
    created_at       DATETIME(6)      NOT NULL,
    destination      VARCHAR(255)     NOT NULL,
    in_order         BOOLEAN          NOT NULL,
    life             INT              NOT NULL,
    attempts         INT              NOT NULL,
    first_attempt_at DATETIME(6),
    redriven_from    BIGINT,
    last_verdict     VARCHAR(64),
    last_error       LONGTEXT,
    history          LONGTEXT         NOT NULL,
    reason           VARCHAR(64)      NOT NULL,
    fingerprint      VARCHAR(255)     NOT NULL,
    blocks_key       BOOLEAN          NOT NULL,
    died_at          DATETIME(6)      NOT NULL,
    CONSTRAINT one_dead_letter_per_life UNIQUE (message_id, destination, life),
    INDEX dead_letter_by_key (destination, blocks_key, ordering_key)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Ownership between relays. The row is the lock of every write that is not the plain DELETE of delivered messages.
CREATE TABLE IF NOT EXISTS outbox_partitions (
    partition_no TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    owner        BINARY(16),
    epoch        BIGINT           NOT NULL DEFAULT 0
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
INSERT IGNORE INTO outbox_partitions (partition_no) VALUES
    (0), (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), (11), (12), (13), (14), (15),
    (16), (17), (18), (19), (20), (21), (22), (23), (24), (25), (26), (27), (28), (29), (30), (31);

-- One row per running relay, alive while `beat` changes, dead when it stood still for `lease_ms`.
CREATE TABLE IF NOT EXISTS outbox_relays (
    id         BINARY(16)   NOT NULL PRIMARY KEY,
    name       VARCHAR(255) NOT NULL,
    version    VARCHAR(255) NOT NULL,
    lease_ms   BIGINT       NOT NULL,
    beat       BIGINT       NOT NULL DEFAULT 0,
    draining   BOOLEAN      NOT NULL DEFAULT false,
    serves     LONGTEXT     NOT NULL DEFAULT ('[]'),
    circuits   LONGTEXT     NOT NULL DEFAULT ('[]'),
    started_at DATETIME(6)  NOT NULL DEFAULT (utc_timestamp(6))
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What messages can be routed to. `patterns` is a JSON array of topic patterns.
CREATE TABLE IF NOT EXISTS outbox_destinations (
    name         VARCHAR(255) NOT NULL PRIMARY KEY,
    patterns     LONGTEXT     NOT NULL,
    ordering     VARCHAR(64)  NOT NULL DEFAULT 'key',
    paused_at    DATETIME(6),
    paused_by    VARCHAR(255),
    pause_reason LONGTEXT,
    held_until   DATETIME(6),
    served_at    DATETIME(6)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Tracked messages as seen by whoever waits for the result.
CREATE TABLE IF NOT EXISTS outbox_operations (
    id              BINARY(16)   NOT NULL PRIMARY KEY,
    message_id      BINARY(16),
    seq             BIGINT,
    topic           VARCHAR(256) NOT NULL,
    status          VARCHAR(64)  NOT NULL DEFAULT 'pending',
    attempt         INT          NOT NULL DEFAULT 0,
    next_attempt_at DATETIME(6),
    progress        LONGTEXT,
    result          LONGBLOB,
    result_type     VARCHAR(255),
    result_location LONGTEXT,
    error           LONGTEXT,
    created_at      DATETIME(6)  NOT NULL DEFAULT (utc_timestamp(6)),
    updated_at      DATETIME(6)  NOT NULL DEFAULT (utc_timestamp(6)),
    expires_at      DATETIME(6),
    INDEX operation_by_expiry (expires_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The consumer's once-only table.
CREATE TABLE IF NOT EXISTS outbox_inbox (
    consumer    VARBINARY(1024) NOT NULL,
    message_id  VARBINARY(1024) NOT NULL,
    received_at DATETIME(6)     NOT NULL DEFAULT (utc_timestamp(6)),
    PRIMARY KEY (consumer, message_id),
    CONSTRAINT inbox_names_fit CHECK (octet_length(consumer) <= 255 AND octet_length(message_id) <= 255),
    INDEX inbox_by_received (received_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS outbox_dedup_keys (
    topic      VARCHAR(256)    NOT NULL,
    dedup_key  VARBINARY(1024) NOT NULL,
    message_id BINARY(16)      NOT NULL,
    seq        BIGINT,
    expires_at DATETIME(6)     NOT NULL,
    PRIMARY KEY (topic, dedup_key),
    INDEX dedup_key_by_expiry (expires_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Who changed what by hand.
CREATE TABLE IF NOT EXISTS outbox_audit (
    id     BIGINT       NOT NULL AUTO_INCREMENT PRIMARY KEY,
    at     DATETIME(6)  NOT NULL DEFAULT (utc_timestamp(6)),
    actor  VARCHAR(255) NOT NULL,
    action VARCHAR(255) NOT NULL,
    target LONGTEXT     NOT NULL,
    reason LONGTEXT
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The archive of delivered messages, empty unless retention asks for it.
CREATE TABLE IF NOT EXISTS outbox_delivered (
    message_id   BINARY(16)      NOT NULL PRIMARY KEY,
    seq          BIGINT          NOT NULL,
    topic        VARCHAR(256)    NOT NULL,
    ordering_key VARBINARY(1024),
    payload      LONGBLOB        NOT NULL,
    content_type VARCHAR(255)    NOT NULL,
    headers      LONGTEXT        NOT NULL,
    version      SMALLINT        NOT NULL,
    created_at   DATETIME(6)     NOT NULL,
    delivered_at DATETIME(6)     NOT NULL,
    INDEX delivered_by_time (delivered_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row: who this outbox is, the schema it has, and how often the routing changed.
-- It has a primary key because group replication asks for one in every table.
CREATE TABLE IF NOT EXISTS outbox_meta (
    outbox_id      BINARY(16) NOT NULL DEFAULT (random_bytes(16)) PRIMARY KEY,
    schema_version INT        NOT NULL,
    routes_version BIGINT     NOT NULL DEFAULT 0
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
INSERT INTO outbox_meta (schema_version) SELECT 1 FROM (SELECT count(*) AS n FROM outbox_meta) AS present WHERE n = 0;
