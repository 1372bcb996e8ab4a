//! A mail as a message, and the handler that hands it to an SMTP server.
//!
//! What the server says decides what happens next: a permanent refusal (5xx) makes a dead letter for a person to look at,
//! everything that may pass is tried again.
//!
//! A mail can arrive twice: when the server has taken it and the connection breaks before it says so, nobody here can
//! know. Both copies carry the same `Message-ID`, which many mail systems take for one mail.

use std::time::Duration;

use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::Error as SmtpError;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use relay::{Context, HandlerError, HandlerResult};
use serde::{Deserialize, Serialize};

use crate::Failure;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What an application enqueues.
#[derive(Serialize, Deserialize)]
pub(crate) struct Mail {
    pub(crate) to: String,
    pub(crate) subject: String,
    pub(crate) text: String,
}

impl outbox::Message for Mail {
    const TOPIC: &'static str = "mail.requested";
}

/// Hands mails to one server.
#[derive(Clone)]
pub(crate) struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Mailer {
    /// A server that takes mail from this machine without a password or TLS, as a local relay host does.
    ///
    /// For a provider on the Internet: lettre's feature `tokio1-rustls`, `AsyncSmtpTransport::starttls_relay(host)` and
    /// `.credentials(…)`.
    pub(crate) fn new(host: &str, port: u16, from: &str) -> Result<Mailer, Failure> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host);
        let transport = transport.port(port).timeout(Some(CONNECT_TIMEOUT)).build();
        Ok(Mailer { transport, from: from.parse()? })
    }

    /// The handler.
    pub(crate) async fn send(self, mail: Mail, context: Context) -> HandlerResult {
        // An address that is none will not become one. It is not repeated: errors are read by more people than mail is.
        let to: Mailbox = mail
            .to
            .parse()
            .map_err(|_| HandlerError::reject("the address of the recipient is not an e-mail address"))?;
        let message_id = format!("<{}@{}>", context.message_id(), self.from.email.domain());
        let message = Message::builder()
            .from(self.from)
            .to(to)
            .subject(mail.subject)
            .message_id(Some(message_id))
            .header(ContentType::TEXT_PLAIN)
            .body(mail.text)
            .map_err(HandlerError::reject)?;
        self.transport.send(message).await.map_err(judge)?;
        Ok(())
    }
}

/// What a failure means. 5xx is final by the protocol; 4xx, a broken connection and silence are not.
fn judge(error: SmtpError) -> HandlerError {
    match error.status().map(u16::from) {
        // Who we are is refused, not the mail: every mail would fare alike until a person has changed something.
        Some(530 | 534 | 535 | 538) => HandlerError::misconfigured(error),
        Some(500..) => HandlerError::reject(error),
        _ => HandlerError::retry(error),
    }
}
