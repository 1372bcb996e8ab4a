//! What an application enqueues.

use std::borrow::Cow;

use serde::Serialize;

/// A kind of message, known by its topic.
///
/// ```
/// use std::borrow::Cow;
///
/// #[derive(serde::Serialize)]
/// struct OrderPlaced {
///     order_id: i64,
/// }
///
/// impl outbox::Message for OrderPlaced {
///     const TOPIC: &'static str = "order.placed";
///
///     fn key(&self) -> Option<Cow<'_, str>> {
///         Some(self.order_id.to_string().into())
///     }
/// }
/// ```
///
/// What has no topic cannot be enqueued; the compiler says so, and what to write:
///
/// ```compile_fail,E0277
/// #[derive(serde::Serialize)]
/// struct OrderPlaced {
///     order_id: i64,
/// }
///
/// let _ = outbox::envelope(&OrderPlaced { order_id: 1 });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an outbox message: it has no topic",
    label = "not a message",
    note = "write `impl outbox::Message for {Self} {{ const TOPIC: &'static str = \"what.happened\"; }}`",
    note = "or send bytes with `outbox::Envelope::raw(topic, bytes)`"
)]
pub trait Message: Serialize {
    /// What routes it: words of letters, digits, `_` and `-`, joined by dots.
    const TOPIC: &'static str;

    /// The version of this type's JSON, for receivers that meet several. Starts at 1.
    const VERSION: u16 = 1;

    /// The ordering key: messages with the same key reach a destination in the order they were enqueued.
    ///
    /// Without a key a message waits for nobody. Keys are compared byte by byte.
    fn key(&self) -> Option<Cow<'_, str>> {
        None
    }
}
