//! `relay send` and `relay listen`: for trying things out.

use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;

use super::{instant, span};

#[derive(Debug, Args)]
pub(in crate::cli) struct Send {
    /// The topic, such as `order.placed`
    pub(in crate::cli) topic: String,
    /// The payload as it stands, `-` for what stdin holds, or `@FILE`
    #[arg(default_value = "{}")]
    pub(in crate::cli) payload: String,
    /// The ordering key
    #[arg(long)]
    pub(in crate::cli) key: Option<String>,
    /// A header that travels with the message; may be given several times
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub(in crate::cli) headers: Vec<(String, String)>,
    /// The only destination, whatever the topic
    #[arg(long, value_name = "DESTINATION")]
    pub(in crate::cli) to: Option<String>,
    /// Not before so long from now, such as `10m`
    #[arg(long, value_name = "SPAN", value_parser = span, conflicts_with = "deliver_at")]
    pub(in crate::cli) delay: Option<Duration>,
    /// Not before then
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(in crate::cli) deliver_at: Option<DateTime<Utc>>,
    /// Not after then: it becomes a dead letter
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(in crate::cli) expires_at: Option<DateTime<Utc>>,
    /// Send nothing when a message of this topic was enqueued with the same word within a day
    #[arg(long, value_name = "WORD")]
    pub(in crate::cli) dedup_key: Option<String>,
    /// What the payload is [default: JSON, text or bytes, as it looks]
    #[arg(long, value_name = "TYPE")]
    pub(in crate::cli) content_type: Option<String>,
    /// The header `correlation-id`
    #[arg(long, value_name = "ID")]
    pub(in crate::cli) correlation_id: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Listen {
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub(in crate::cli) port: u16,
    /// The address of this machine to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub(in crate::cli) address: IpAddr,
    /// The status every request is answered with
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub(in crate::cli) status: u16,
    /// Answer the first N requests with 503
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(in crate::cli) fail_first: u64,
    /// Verify signatures with this: `@FILE` or `env:NAME`, or a public key as it stands; what fails is answered with 401
    #[arg(long, value_name = "SECRET")]
    pub(in crate::cli) secret: Option<String>,
    /// Wait so long before each answer
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(in crate::cli) delay: Option<Duration>,
}

/// `name: value`
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
