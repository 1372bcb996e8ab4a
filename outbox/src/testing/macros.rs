//! The assertions. What they do is in `expected.rs`; they only collect.

/// Asserts that a message is enqueued.
///
/// First a connection or a mutable reference to one, then the type of the message or its topic, then what else it must
/// be like, each by a method of [`Expected`](crate::testing::Expected). See [`testing`](crate::testing).
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// # use diesel::Connection;
/// # use outbox::{Envelope, assert_enqueued};
/// # let mut conn = outbox::testing::memory();
/// # let message = Envelope::raw("order.placed", r#"{"total_cents":4200,"lines":[]}"#).key("1");
/// # conn.transaction(|conn| outbox::enqueue(conn, message)).unwrap();
/// assert_enqueued!(&mut conn, "order.placed", key: "1", payload: serde_json::json!({ "total_cents": 4200 }));
/// # }
/// ```
#[macro_export]
macro_rules! assert_enqueued {
    ($($what:tt)+) => {
        $crate::__enqueued!(assert_enqueued, $($what)+)
    };
}

/// Asserts that no such message is enqueued. Takes the same as [`assert_enqueued!`](crate::assert_enqueued).
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// # use outbox::refute_enqueued;
/// # let mut conn = outbox::testing::memory();
/// refute_enqueued!(&mut conn, "order.placed", key: "2");
/// # }
/// ```
#[macro_export]
macro_rules! refute_enqueued {
    ($($what:tt)+) => {
        $crate::__enqueued!(refute_enqueued, $($what)+)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __enqueued {
    ($assertion:ident, async $conn:expr, $($what:tt)+) => {
        $crate::testing::$assertion(
            $crate::aio::testing::enqueued(&mut *$conn).await,
            &$crate::__expected!($($what)+),
        )
    };
    ($assertion:ident, $conn:expr, $($what:tt)+) => {
        $crate::testing::$assertion($crate::testing::enqueued(&mut *$conn), &$crate::__expected!($($what)+))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __expected {
    ($topic:literal $(, $option:ident: $value:expr)* $(,)?) => {
        $crate::testing::Expected::topic($topic)$(.$option($value))*
    };
    (topic: $topic:expr $(, $option:ident: $value:expr)* $(,)?) => {
        $crate::testing::Expected::topic($topic)$(.$option($value))*
    };
    ($message:ty $(, $option:ident: $value:expr)* $(,)?) => {
        $crate::testing::Expected::of::<$message>()$(.$option($value))*
    };
}
