//! The shapes a request can have.

/// The shape of a request: what its body is, and where the rest travels.
///
/// Whatever the mode, the body is the same bytes on every attempt, and what is signed is the body as it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The body is the stored payload, everything else travels in headers: CloudEvents in binary mode.
    #[default]
    Binary,
    /// The body is a CloudEvent as JSON, `application/cloudevents+json`, with the payload in it. A signature covers all of
    /// it.
    Structured,
    /// The body is `{"type": …, "timestamp": …, "data": …}`, as Standard Webhooks recommends.
    Standard,
    /// The body is the stored payload; beside it there are only the message's and the destination's own headers,
    /// `idempotency-key`, which tells copies, and what a signature needs.
    Raw,
}

impl Mode {
    /// Every mode, under its name in the configuration.
    pub const ALL: [(&'static str, Mode); 4] =
        [("binary", Mode::Binary), ("structured", Mode::Structured), ("standard", Mode::Standard), ("raw", Mode::Raw)];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Binary => "binary",
            Mode::Structured => "structured",
            Mode::Standard => "standard",
            Mode::Raw => "raw",
        }
    }
}
