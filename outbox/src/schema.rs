//! diesel's view of the table of pending messages, one for each database, for those who want to look into it.
//!
//! Read through these freely. To write, use [`enqueue`](crate::enqueue), which checks what it writes; a row vanishes
//! when the relay has delivered it, so do not refer to one. PostgreSQL's `xid` column is left out: it is the relay's.

/// PostgreSQL's tables.
#[cfg(feature = "postgres")]
pub mod postgres {
    diesel::table! {
        /// Messages that are committed and not yet settled.
        outbox_messages (seq) {
            /// The number drawn at the insert.
            seq -> BigInt,
            /// The message id.
            id -> Uuid,
            /// Computed by the database from the key, or from the id where there is none.
            partition_no -> SmallInt,
            /// What routes it.
            topic -> Text,
            /// The ordering key.
            ordering_key -> Nullable<Text>,
            /// The payload, when it is text.
            payload -> Nullable<Text>,
            /// The payload, when it is not text.
            payload_bytes -> Nullable<Binary>,
            /// The type of the payload.
            content_type -> Text,
            /// A JSON object of strings.
            headers -> Text,
            /// The only destination.
            destination -> Nullable<Text>,
            /// Not before.
            deliver_at -> Nullable<Timestamptz>,
            /// Not after.
            expires_at -> Nullable<Timestamptz>,
            /// The operation somebody waits for.
            operation_id -> Nullable<Uuid>,
            /// The caller's word for "the same message".
            dedup_key -> Nullable<Text>,
            /// The version of the message type.
            version -> SmallInt,
            /// When it was inserted.
            created_at -> Timestamptz,
        }
    }
}

/// The tables of MariaDB and MySQL. Ids are 16 bytes, times are in UTC.
#[cfg(feature = "mysql")]
pub mod mysql {
    diesel::table! {
        /// Messages that are committed and not yet settled.
        outbox_messages (seq) {
            /// The number drawn at the insert.
            seq -> BigInt,
            /// The message id.
            id -> Binary,
            /// Computed by the database from the key, or from the id where there is none.
            partition_no -> Nullable<Unsigned<TinyInt>>,
            /// What routes it.
            topic -> Text,
            /// The ordering key.
            ordering_key -> Nullable<Binary>,
            /// The payload.
            payload -> Nullable<Binary>,
            /// The type of the payload.
            content_type -> Text,
            /// A JSON object of strings.
            headers -> Text,
            /// The only destination.
            destination -> Nullable<Text>,
            /// Not before.
            deliver_at -> Nullable<Datetime>,
            /// Not after.
            expires_at -> Nullable<Datetime>,
            /// The operation somebody waits for.
            operation_id -> Nullable<Binary>,
            /// The caller's word for "the same message".
            dedup_key -> Nullable<Binary>,
            /// The version of the message type.
            version -> SmallInt,
            /// When it was inserted.
            created_at -> Datetime,
        }
    }
}

/// SQLite's tables. Ids are 16 bytes, times are milliseconds since 1970.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    diesel::table! {
        /// Messages that are committed and not yet settled.
        outbox_messages (seq) {
            /// The number drawn at the insert.
            seq -> BigInt,
            /// The message id.
            id -> Binary,
            /// Computed by the database from the key, or from the id where there is none.
            partition_no -> Integer,
            /// What routes it.
            topic -> Text,
            /// The ordering key.
            ordering_key -> Nullable<Text>,
            /// The payload; text is read as its bytes.
            payload -> Binary,
            /// The type of the payload.
            content_type -> Text,
            /// A JSON object of strings.
            headers -> Text,
            /// The only destination.
            destination -> Nullable<Text>,
            /// Not before.
            deliver_at -> Nullable<BigInt>,
            /// Not after.
            expires_at -> Nullable<BigInt>,
            /// The operation somebody waits for.
            operation_id -> Nullable<Binary>,
            /// The caller's word for "the same message".
            dedup_key -> Nullable<Text>,
            /// The version of the message type.
            version -> SmallInt,
            /// When it was inserted.
            created_at -> BigInt,
        }
    }
}
