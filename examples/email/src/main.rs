//! E-mail by SMTP as a handler of the relay.
//!
//! `email send TO SUBJECT TEXT` enqueues a mail, as an application would in the transaction of whatever the mail is about.
//! `email` delivers, through the SMTP server that `SMTP_HOST` and `SMTP_PORT` name, until it is told to end. What is
//! worth copying is `mail.rs`; `README.md` says how to run it.

mod mail;

use std::error::Error;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use relay::{Handler, Relay};

use crate::mail::{Mail, Mailer};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let database = variable("DATABASE", "email.db")?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => deliver(database),
        ["send", to, subject, text] => {
            send(&database, &Mail { to: to.into(), subject: subject.into(), text: text.into() })
        }
        _ => Err("usage: email, or: email send TO SUBJECT TEXT".into()),
    }
}

/// Enqueues a mail.
fn send(database: &str, mail: &Mail) -> Result<(), Failure> {
    let mut conn = open(database)?;
    let receipt = outbox::transaction(&mut conn, |conn| {
        // An application writes here what the mail is about: the account, the order, the reset of a password.
        outbox::enqueue(conn, mail)
    })?;
    tracing::info!(message.id = %receipt.message_id, "enqueued");
    Ok(())
}

/// Delivers until SIGTERM or Ctrl-C.
#[tokio::main]
async fn deliver(database: String) -> Result<(), Failure> {
    open(&database)?;
    let from = variable("MAIL_FROM", "Shop <shop@example.org>")?;
    let mailer = Mailer::new(&variable("SMTP_HOST", "127.0.0.1")?, variable("SMTP_PORT", "1025")?.parse()?, &from)?;
    let timeout = Duration::from_secs(variable("SMTP_TIMEOUT_SECS", "60")?.parse()?);
    let handler = Handler::new("email", move |mail, context| mailer.clone().send(mail, context))
        // For all of an attempt. lettre limits only the time to connect, so this is what keeps a server that has fallen
        // silent from holding a place for ever.
        .timeout(timeout)
        // A mail server that sees many connections from one place begins to refuse them.
        .concurrency(4);
    let relay = Relay::builder(format!("sqlite:{database}")).name("email").destination(handler).build().await?;
    relay.run_until(relay::shutdown_signal()).await?;
    Ok(())
}

fn open(database: &str) -> Result<SqliteConnection, Failure> {
    let mut conn = SqliteConnection::establish(database)?;
    conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    outbox::migrations::run(&mut conn)?;
    Ok(conn)
}

fn variable(name: &str, otherwise: &str) -> Result<String, Failure> {
    match std::env::var(name) {
        Ok(value) => Ok(value),
        Err(std::env::VarError::NotPresent) => Ok(otherwise.to_owned()),
        Err(error) => Err(format!("{name}: {error}").into()),
    }
}
