//! A small shop on a SQLite file: answer at once, do the rest reliably afterwards.
//!
//! `POST /orders` writes the order and a message in one transaction and answers 202. A relay in the same process then
//! delivers the message to three places: a handler that "sends" the confirmation as an .eml file, a warehouse that is
//! down at first, and a billing service that rejects the order until somebody repairs it.
//!
//! Without arguments it plays one story and ends. With `--serve` it keeps running on port 8080 (`PORT` says otherwise), for
//! requests of your own.

mod mail;
mod neighbours;
mod shop;
mod story;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use relay::retry::RetryPolicy;
use relay::{Event, Http, Relay, shutdown_signal};
use tokio::sync::{mpsc, oneshot};

use crate::mail::Mailbox;
use crate::neighbours::Neighbours;
use crate::shop::Shop;

/// Whatever goes wrong here ends the program with its message.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let serve = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--serve") => true,
        Some(other) => return Err(format!("unknown argument `{other}`; there is only `--serve`").into()),
    };
    let folder = fresh_folder()?;
    let database = folder.join("shop.db");
    let mailbox = Mailbox::create(folder.join("mail"))?;
    let port = std::env::var("PORT").map_or(Ok(8080), |port| port.parse())?;
    let shop = Shop::open(&database, if serve { port } else { 0 }).await?;
    let neighbours = Neighbours::start().await?;

    let (told, events) = mpsc::unbounded_channel();
    let relay = build_relay(&database, &mailbox, &neighbours, told).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let relay = tokio::spawn(relay.run_until(async {
        let _ = stopped.await;
    }));

    let outcome = if serve {
        println!("The shop listens. Place an order, or one that is rolled back (its card is declined):");
        println!(
            "  curl -i -d '{{\"item\":\"teapot\",\"email\":\"ada@example.org\"}}' -H 'content-type: application/json' {}/orders",
            shop.url()
        );
        println!(
            "  curl -i -d '{{\"item\":\"teapot\",\"email\":\"ada@example.org\",\"card\":\"declined\"}}' -H 'content-type: application/json' {}/orders",
            shop.url()
        );
        println!("Billing rejects every order until you repair it. Then send what it rejected again, here the first:");
        println!("  curl -i -X POST {}/repair", neighbours.billing_url());
        println!("  cargo run -p relay -- dead redrive 1 --database-url sqlite:{}", database.display());
        println!("Files: {}, which stay there.\nCtrl-C ends it.\n", folder.display());
        tokio::spawn(story::narrate(events));
        shutdown_signal().await;
        Ok(())
    } else {
        tokio::time::timeout(Duration::from_secs(25), story::play(&shop, &neighbours, &mailbox, &folder, events))
            .await
            .unwrap_or_else(|_| Err("the story did not come to its end in 25 s".into()))
    };

    // The relay finishes what is under way, writes it down and gives its partitions up.
    let _ = stop.send(());
    relay.await??;
    outcome
}

/// One relay: a handler in this process and two services behind HTTP.
async fn build_relay(
    database: &Path,
    mailbox: &Mailbox,
    neighbours: &Neighbours,
    told: mpsc::UnboundedSender<Event>,
) -> Result<Relay, Failure> {
    let quick = RetryPolicy::pauses(vec![Duration::from_millis(600); 4]);
    let mailbox = mailbox.clone();
    let relay = Relay::builder(format!("sqlite:{}", database.display()))
        .name("quickstart")
        .source("/shop")
        .retry(quick)
        .handler("confirmation", move |order, context| mailbox.clone().confirm(order, context))
        .destination(Http::new("warehouse", neighbours.warehouse_url()).topics(["order.*"]))
        .destination(Http::new("billing", neighbours.billing_url()).topics(["order.*"]))
        .on_event(move |event| {
            let _ = told.send(event.clone());
        })
        .build()
        .await?;
    Ok(relay)
}

fn fresh_folder() -> Result<PathBuf, Failure> {
    let folder = std::env::temp_dir().join(format!("outbox-quickstart-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
