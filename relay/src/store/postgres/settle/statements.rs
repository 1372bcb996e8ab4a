//! The statements of a settle.
//!
//! Parameters are arrays, one for each column of what is written. Where a statement names rows, the array of their
//! numbers is ascending, and the rest of what is known of a row is found by the place of its number in it
//! (`width_bucket` is a binary search): exact, and no join whose plan could go wrong.

use crate::store::postgres::connection::Sql;

/// What a row keeps of its message through every table.
macro_rules! message_columns {
    ($row:literal) => {
        concat!(
            $row,
            ".seq, ",
            $row,
            ".partition_no, ",
            $row,
            ".topic, ",
            $row,
            ".ordering_key, ",
            $row,
            ".payload, ",
            $row,
            ".payload_bytes, ",
            $row,
            ".content_type, ",
            $row,
            ".headers, ",
            $row,
            ".deliver_at, ",
            $row,
            ".expires_at, ",
            $row,
            ".operation_id, ",
            $row,
            ".dedup_key, ",
            $row,
            ".version, ",
            $row,
            ".created_at"
        )
    };
}

macro_rules! insert_delivery {
    () => {
        "INSERT INTO outbox_deliveries (message_id, seq, partition_no, topic, ordering_key, payload, payload_bytes, \
         content_type, headers, deliver_at, expires_at, operation_id, dedup_key, version, created_at, \
         destination, state, blocked, suspect, in_order, life, attempts, due_at, first_attempt_at, redriven_from, \
         last_verdict, last_error, history) "
    };
}

macro_rules! insert_dead_letter {
    () => {
        "INSERT INTO outbox_dead_letters (message_id, seq, partition_no, topic, ordering_key, payload, payload_bytes, \
         content_type, headers, deliver_at, expires_at, operation_id, dedup_key, version, created_at, \
         destination, in_order, life, attempts, first_attempt_at, redriven_from, \
         last_verdict, last_error, history, reason, fingerprint, blocks_key, died_at) "
    };
}

/// Units that wait, as rows. Eleven parameters from the number given on.
macro_rules! waits_unit {
    ($($n:literal),*) => {
        concat!("unnest(", waits_unit!(@types $($n),*), ") AS u(row, destination, state, attempts, pause, in_order, \
                 age, last_verdict, last_error, history)")
    };
    (@types $a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal, $h:literal, $i:literal,
     $j:literal) => {
        concat!($a, "::bigint[], ", $b, "::text[], ", $c, "::text[], ", $d, "::integer[], ", $e, "::bigint[], ", $f,
                "::boolean[], ", $g, "::bigint[], ", $h, "::text[], ", $i, "::text[], ", $j, "::text[]")
    };
}

/// Units that die, as rows.
macro_rules! dies_unit {
    ($a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal, $h:literal, $i:literal,
     $j:literal) => {
        concat!(
            "unnest(",
            $a,
            "::bigint[], ",
            $b,
            "::text[], ",
            $c,
            "::text[], ",
            $d,
            "::integer[], ",
            $e,
            "::boolean[], ",
            $f,
            "::text[], ",
            $g,
            "::bigint[], ",
            $h,
            "::text[], ",
            $i,
            "::text[], ",
            $j,
            "::text[]) AS u(row, destination, reason, attempts, blocks_key, fingerprint, age, last_verdict, \
                 last_error, history)"
        )
    };
}

/// Parameters: seq[] (ascending), id[], routes version.
///
/// Rows are named by `= ANY`, and the rest of what is known of each is found by the place of its number in the same
/// ascending array. A join would leave the choice to the planner, and one that last saw the table empty reads all of it
/// for every batch.
pub(in crate::store::postgres) const MESSAGE_DELIVERED: Sql = Sql {
    name: "message_delivered",
    text: "-- message_delivered\n\
           WITH gone AS (DELETE FROM outbox_messages m \
               WHERE m.seq = ANY($1::bigint[]) AND m.id = ($2::uuid[])[width_bucket(m.seq, $1::bigint[])] \
               AND EXISTS (SELECT FROM outbox_meta WHERE routes_version = $3::bigint) RETURNING m.seq) \
           SELECT array_agg(gone.seq), pg_current_xact_id()::text FROM gone",
};

/// The ordering makes the server take the locks in that order.
pub(in crate::store::postgres) const SETTLE_LOCK: Sql = Sql {
    name: "settle_lock",
    text: "-- settle_lock\n\
           SELECT partition_no, owner, epoch, pg_current_xact_id()::text FROM outbox_partitions \
           WHERE partition_no = ANY($1::smallint[]) ORDER BY partition_no FOR UPDATE",
};

/// Makes new versions of partition rows that are locked already. Parameter: partition_no[].
///
/// The lock alone leaves no trace behind it. An application that cancels in a transaction older than this one, at
/// REPEATABLE READ or SERIALIZABLE, would be given it and then decide about a key by rows that are not all there are; over
/// a row that has a newer version the server ends its transaction instead.
///
/// A known limit: the old versions go in passing, but not while somebody holds a snapshot. Until that ends, whoever locks
/// the rows walks over all of them: 6 ms for ten rows after ten thousand settles that added something.
pub(in crate::store::postgres) const SETTLE_VERSION: Sql = Sql {
    name: "settle_version",
    text: "-- settle_version\n\
           UPDATE outbox_partitions SET partition_no = partition_no WHERE partition_no = ANY($1::smallint[])",
};

/// Under the locks, in a snapshot of its own: what was committed while waiting for them is seen.
pub(in crate::store::postgres) const SETTLE_ROUTES: Sql =
    Sql { name: "settle_routes", text: "-- settle_routes\nSELECT routes_version FROM outbox_meta" };

/// Messages become waiting rows and dead letters, or nothing. Parameters: seq[] (ascending), id[], partition_no[]; ten arrays of
/// units that wait; ten of units that die; now.
///
/// In-order rows with a key are inserted blocked; `SETTLE_HEADS` lets the lowest go.
pub(in crate::store::postgres) const SETTLE_MOVE: Sql = Sql {
    name: "settle_move",
    text: concat!(
        "-- settle_move\n",
        "WITH gone AS (DELETE FROM outbox_messages m WHERE m.seq = ANY($1::bigint[]) ",
        "AND m.id = ($2::uuid[])[width_bucket(m.seq, $1::bigint[])] ",
        "AND m.partition_no = ($3::smallint[])[width_bucket(m.seq, $1::bigint[])] ",
        "RETURNING m.id, ",
        message_columns!("m"),
        "), ",
        "waits AS (",
        insert_delivery!(),
        "SELECT g.id, ",
        message_columns!("g"),
        ", u.destination, u.state, ",
        "u.in_order AND g.ordering_key IS NOT NULL, u.state = 'suspect', u.in_order, 0, u.attempts, ",
        "CASE WHEN u.pause IS NULL THEN coalesce(g.deliver_at, clock.now) ",
        "ELSE clock.now + u.pause * interval '1 microsecond' END, ",
        "clock.now - u.age * interval '1 microsecond', NULL, u.last_verdict, u.last_error, u.history ",
        "FROM ",
        waits_unit!("$4", "$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12", "$13"),
        " JOIN gone g ON g.seq = u.row CROSS JOIN (SELECT coalesce($24::timestamptz, now()) AS now) AS clock ",
        "ON CONFLICT ON CONSTRAINT one_delivery_per_destination DO NOTHING), ",
        "dies AS (",
        insert_dead_letter!(),
        "SELECT g.id, ",
        message_columns!("g"),
        ", u.destination, true, 0, ",
        "u.attempts, clock.now - u.age * interval '1 microsecond', NULL, u.last_verdict, u.last_error, u.history, ",
        "u.reason, u.fingerprint, u.blocks_key, clock.now ",
        "FROM ",
        dies_unit!("$14", "$15", "$16", "$17", "$18", "$19", "$20", "$21", "$22", "$23"),
        " JOIN gone g ON g.seq = u.row CROSS JOIN (SELECT coalesce($24::timestamptz, now()) AS now) AS clock ",
        "ON CONFLICT ON CONSTRAINT one_dead_letter_per_life DO NOTHING) ",
        "SELECT seq FROM gone"
    ),
};

/// Waiting rows that were delivered. Parameters: id[] (ascending), attempts[],
/// partition_no[], message_id[].
///
/// After a restore the numbers of rows are handed out again, so each is named with its message.
pub(in crate::store::postgres) const SETTLE_DELIVERED: Sql = Sql {
    name: "settle_delivered",
    text: "-- settle_delivered\n\
           DELETE FROM outbox_deliveries d WHERE d.id = ANY($1::bigint[]) \
           AND d.attempts = ($2::integer[])[width_bucket(d.id, $1::bigint[])] \
           AND d.partition_no = ($3::smallint[])[width_bucket(d.id, $1::bigint[])] \
           AND d.message_id = ($4::uuid[])[width_bucket(d.id, $1::bigint[])] RETURNING d.id",
};

/// Waiting rows that are about to be attempted. Parameters: id[] (ascending), attempts[], partition_no[], message_id[],
/// relay.
///
/// A zombie may hold the row in its handler's transaction; the others must not wait for it.
pub(in crate::store::postgres) const DELIVERY_START: Sql = Sql {
    name: "delivery_start",
    text: "-- delivery_start\n\
           UPDATE outbox_deliveries u SET attempted_by = $5::uuid \
           WHERE u.id = ANY(ARRAY(SELECT d.id FROM outbox_deliveries d WHERE d.id = ANY($1::bigint[]) \
               AND d.attempts = ($2::integer[])[width_bucket(d.id, $1::bigint[])] \
               AND d.partition_no = ($3::smallint[])[width_bucket(d.id, $1::bigint[])] \
               AND d.message_id = ($4::uuid[])[width_bucket(d.id, $1::bigint[])] \
               ORDER BY d.id FOR UPDATE SKIP LOCKED)) RETURNING u.id",
};

/// Waiting rows that wait again. Parameters: attempts_read[], partition_no[]; ten arrays of units (rows ascending); now;
/// message_id[].
///
/// A unit that says nothing about a verdict was not attempted: the last one stays.
pub(in crate::store::postgres) const SETTLE_WAIT: Sql = Sql {
    name: "settle_wait",
    text: concat!(
        "-- settle_wait\n",
        "UPDATE outbox_deliveries d SET state = u.state, suspect = (u.state = 'suspect'), ",
        "attempted_by = NULL, deaths = 0, ",
        "attempts = u.attempts, due_at = CASE WHEN u.pause IS NULL THEN coalesce(d.deliver_at, clock.now) ",
        "ELSE clock.now + u.pause * interval '1 microsecond' END, ",
        "first_attempt_at = coalesce(d.first_attempt_at, clock.now - u.age * interval '1 microsecond'), ",
        "last_verdict = coalesce(u.last_verdict, d.last_verdict), ",
        "last_error = CASE WHEN u.last_verdict IS NULL THEN coalesce(u.last_error, d.last_error) ELSE u.last_error END, ",
        "history = u.history ",
        "FROM unnest($1::integer[], $2::smallint[], $3::bigint[], $4::text[], $5::text[], $6::integer[], ",
        "$7::bigint[], $8::boolean[], $9::bigint[], $10::text[], $11::text[], $12::text[]) ",
        "AS u(attempts_read, partition_no, row, destination, state, attempts, pause, in_order, age, last_verdict, ",
        "last_error, history) ",
        "CROSS JOIN (SELECT coalesce($13::timestamptz, now()) AS now) AS clock ",
        "WHERE d.id = ANY($3::bigint[]) AND d.id = u.row AND d.attempts = u.attempts_read AND d.partition_no = u.partition_no \
         AND d.message_id = ($14::uuid[])[width_bucket(d.id, $3::bigint[])] RETURNING d.id"
    ),
};

/// Waiting rows that become dead letters (of their own destination), or, where they were not routed yet, one row for
/// each destination. Parameters: id[] (ascending), attempts_read[], partition_no[], routed[]; ten arrays of units that wait; ten of
/// units that die (destination null: the row's own); now; message_id[].
pub(in crate::store::postgres) const SETTLE_LEAVE: Sql = Sql {
    name: "settle_leave",
    text: concat!(
        "-- settle_leave\n",
        "WITH gone AS (DELETE FROM outbox_deliveries d ",
        "WHERE d.id = ANY($1::bigint[]) ",
        "AND d.attempts = ($2::integer[])[width_bucket(d.id, $1::bigint[])] ",
        "AND d.partition_no = ($3::smallint[])[width_bucket(d.id, $1::bigint[])] ",
        "AND d.message_id = ($26::uuid[])[width_bucket(d.id, $1::bigint[])] ",
        "AND (d.destination = '' OR NOT ($4::boolean[])[width_bucket(d.id, $1::bigint[])]) ",
        "RETURNING d.id, d.message_id, ",
        message_columns!("d"),
        ", d.destination, d.in_order, d.life, d.due_at, ",
        "d.first_attempt_at, d.redriven_from), ",
        "waits AS (",
        insert_delivery!(),
        "SELECT g.message_id, ",
        message_columns!("g"),
        ", u.destination, u.state, ",
        "u.in_order AND g.ordering_key IS NOT NULL, u.state = 'suspect', u.in_order, g.life, 0, ",
        "least(g.due_at, CASE WHEN u.pause IS NULL THEN coalesce(g.deliver_at, clock.now) ",
        "ELSE clock.now + u.pause * interval '1 microsecond' END), ",
        "g.first_attempt_at, g.redriven_from, u.last_verdict, u.last_error, u.history ",
        "FROM ",
        waits_unit!("$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12", "$13", "$14"),
        " JOIN gone g ON g.id = u.row CROSS JOIN (SELECT coalesce($25::timestamptz, now()) AS now) AS clock ",
        "ON CONFLICT ON CONSTRAINT one_delivery_per_destination DO NOTHING), ",
        "dies AS (",
        insert_dead_letter!(),
        "SELECT g.message_id, ",
        message_columns!("g"),
        ", coalesce(u.destination, g.destination), g.in_order, g.life, u.attempts, ",
        "coalesce(g.first_attempt_at, clock.now - u.age * interval '1 microsecond'), g.redriven_from, ",
        "u.last_verdict, u.last_error, u.history, u.reason, u.fingerprint, u.blocks_key, clock.now ",
        "FROM ",
        dies_unit!("$15", "$16", "$17", "$18", "$19", "$20", "$21", "$22", "$23", "$24"),
        " JOIN gone g ON g.id = u.row CROSS JOIN (SELECT coalesce($25::timestamptz, now()) AS now) AS clock ",
        "ON CONFLICT ON CONSTRAINT one_dead_letter_per_life DO NOTHING) ",
        "SELECT id FROM gone"
    ),
};

/// Leaves exactly the lowest in-order row of each key unblocked, none while a blocking dead letter of it exists.
/// Parameters: destination[], ordering_key[], window.
///
/// Before the transaction the lowest row was the only unblocked one, so the row to block is among the lowest as many as
/// the transaction inserted. Looking no further keeps a key with many followers cheap; `partition_repair` looks at all.
pub(in crate::store::postgres) const SETTLE_HEADS: Sql = Sql {
    name: "settle_heads",
    text: "-- settle_heads\n\
           UPDATE outbox_deliveries d SET blocked = NOT d.blocked, \
               state = CASE WHEN d.blocked AND d.state = 'blocked' THEN 'retry' ELSE d.state END \
           WHERE d.id = ANY(ARRAY(SELECT ranked.id \
               FROM (SELECT DISTINCT t.destination, t.ordering_key FROM unnest($1::text[], $2::text[]) \
                     AS t(destination, ordering_key)) AS touched \
               CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM outbox_dead_letters l \
                   WHERE l.destination = touched.destination AND l.blocks_key \
                   AND l.ordering_key = touched.ordering_key OFFSET 0) AS stopped) AS letters \
               CROSS JOIN LATERAL (SELECT lowest.id, lowest.blocked, \
                       row_number() OVER (ORDER BY lowest.seq, lowest.id) = 1 AND NOT letters.stopped AS is_head \
                   FROM (SELECT r.id, r.seq, r.blocked FROM outbox_deliveries r \
                         WHERE r.destination = touched.destination AND r.ordering_key = touched.ordering_key \
                         AND r.in_order ORDER BY r.seq LIMIT $3::bigint) AS lowest) AS ranked \
               WHERE ranked.blocked = ranked.is_head))",
};
