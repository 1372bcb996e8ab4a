//! `relay secret`: keys for signing, and what is done with them.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Secret {
    /// Print a fresh secret for signing
    ///
    /// It begins with `whsec_`; sender and receiver share it (`v1`, HMAC-SHA256). With --asymmetric it is a private key,
    /// `whsk_`, which only the sender has (`v1a`, Ed25519); the public key for the receiver is said on stderr.
    #[command(after_help = "\
Examples:
  relay secret new > /run/secrets/billing-whsec
  relay secret new --asymmetric > /run/secrets/billing-whsk
  relay secret new --asymmetric -o json | jq -r .public_key")]
    New {
        /// A private key, whose public one may be shown to everybody
        #[arg(long)]
        asymmetric: bool,
    },
    /// Print the public key of a private one, for the receiver
    #[command(after_help = "\
Examples:
  relay secret public @/run/secrets/billing-whsk
  relay secret public env:BILLING_KEY")]
    Public {
        /// The private key, as `@FILE` or `env:NAME`
        #[arg(value_name = "SECRET")]
        secret: String,
    },
    /// Sign a request as the relay does, and print its headers
    ///
    /// The first secret is the newest; each makes one signature. The headers are printed as curl reads them.
    #[command(after_help = "\
Examples:
  relay secret sign --secret @billing-whsec --id m1 @body.json
  cat body.json | relay secret sign --secret @new-key --secret env:OLD_KEY --id m1
  relay secret sign --secret @billing-whsec --id m1 @body.json | curl -H @- --data-binary @body.json localhost:8080")]
    Sign(Sign),
    /// Verify a request as a receiver does; exits 1 and says why when it is not to be believed
    #[command(after_help = "\
Examples:
  relay secret verify --secret @billing-whsec --id m1 --timestamp 1795000060 --signature v1,… @body.json
  cat body.json | relay secret verify --secret whpk_… --id m1 --timestamp 1795000060 --signature v1a,… --any-age")]
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Sign {
    /// What to sign with, as `@FILE` or `env:NAME`; may be given several times
    #[arg(long = "secret", value_name = "SECRET", required = true)]
    pub(in crate::cli) secrets: Vec<String>,
    /// The header `webhook-id`
    #[arg(long)]
    pub(in crate::cli) id: String,
    /// The header `webhook-timestamp`, in seconds since 1970 [default: now]
    #[arg(long, value_name = "SECONDS")]
    pub(in crate::cli) timestamp: Option<u64>,
    /// The body as it stands, `-` for what stdin holds, or `@FILE`
    #[arg(default_value = "-")]
    pub(in crate::cli) body: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    /// What to verify with: `@FILE` or `env:NAME`, or a public key as it stands; may be given several times
    #[arg(long = "secret", value_name = "SECRET", required = true)]
    pub(in crate::cli) secrets: Vec<String>,
    /// The header `webhook-id`
    #[arg(long)]
    pub(in crate::cli) id: String,
    /// The header `webhook-timestamp`
    #[arg(long, value_name = "SECONDS")]
    pub(in crate::cli) timestamp: String,
    /// The header `webhook-signature`
    #[arg(long)]
    pub(in crate::cli) signature: String,
    /// Also believe what was signed more than five minutes ago: for looking at a request that was recorded
    #[arg(long)]
    pub(in crate::cli) any_age: bool,
    /// The body as it stands, `-` for what stdin holds, or `@FILE`
    #[arg(default_value = "-")]
    pub(in crate::cli) body: String,
}
