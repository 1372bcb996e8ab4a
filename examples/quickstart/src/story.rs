//! The story the quickstart tells: what happens, in the order in which it happens.

use std::path::Path;
use std::time::Instant;

use outbox::dead_letters::{self, By, Filter};
use relay::Event;
use relay::verdict::Verdict;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::Failure;
use crate::mail::Mailbox;
use crate::neighbours::Neighbours;
use crate::shop::Shop;

/// Plays it; an error when something did not happen as promised.
pub(crate) async fn play(
    shop: &Shop,
    neighbours: &Neighbours,
    mailbox: &Mailbox,
    folder: &Path,
    mut events: UnboundedReceiver<Event>,
) -> Result<(), Failure> {
    let began = Instant::now();
    println!("1. An order arrives. It and its message are committed together; the answer does not wait for anybody.");
    let status = order(shop, "teapot", "").await?;
    println!("   POST /orders -> {status}");
    expect(status == 202, "the order was not accepted")?;

    println!(
        "2. Another one arrives, and its card is declined after the message was enqueued: all of it is rolled back."
    );
    let status = order(shop, "samovar", "declined").await?;
    println!("   POST /orders -> {status}");
    expect(status == 402, "the second order was not refused")?;

    println!("3. The relay delivers. The warehouse is down at first; billing rejects.");
    let (mut confirmed, mut stocked, mut rejected) = (false, false, false);
    while !(confirmed && stocked && rejected) {
        let event = events.recv().await.ok_or("the relay ended early")?;
        tell(&event);
        match &event {
            Event::Attempted { delivery, verdict: Verdict::Delivered, .. }
                if delivery.destination == "confirmation" =>
            {
                confirmed = true;
            }
            Event::Attempted { delivery, verdict: Verdict::Delivered, .. } if delivery.destination == "warehouse" => {
                stocked = true;
            }
            Event::DeadLettered { .. } => rejected = true,
            _ => {}
        }
    }

    println!("4. What was rejected rests among the dead letters, with its reason, until somebody looks:");
    let letter = loop {
        // The row is written a moment after the attempt; look until it is there.
        let found = dead_letters::list(&mut *shop.connection()?, &Filter::default(), 10)?;
        if let Some(letter) = found.into_iter().next() {
            break letter;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let error = letter.last_error.as_deref().unwrap_or_default();
    println!("   #{} {} for {}: {} ({error})", letter.id, letter.topic, letter.destination, letter.reason);

    println!("5. Billing is repaired, and the dead letter is sent again.");
    neighbours.repair_billing();
    let by = By { actor: "quickstart".to_owned(), reason: Some("tax codes were loaded".to_owned()) };
    dead_letters::redrive(&mut *shop.connection()?, &[letter.id], &by)?;
    loop {
        let event = events.recv().await.ok_or("the relay ended early")?;
        tell(&event);
        if matches!(&event, Event::Attempted { verdict: Verdict::Delivered, .. }) {
            break;
        }
    }

    let (orders, mails) = (shop.orders()?, mailbox.sent()?);
    println!("6. {orders} order in the table, {} mail sent: {}", mails.len(), mails[0].display());
    println!("   The order that was rolled back left nothing behind.");
    expect(orders == 1 && mails.len() == 1, "one order and one mail were promised")?;
    println!("   The database and the mail stay in {}; delete that folder when you are done.", folder.display());
    println!(
        "\nDone in {:.1} s. `--serve` keeps the shop running for requests of your own.",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Tells events as they come, for ever.
pub(crate) async fn narrate(mut events: UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        tell(&event);
    }
}

fn tell(event: &Event) {
    match event {
        Event::Attempted { delivery, attempt, verdict, code, took, .. } => {
            let outcome = match verdict {
                Verdict::Delivered => "delivered".to_owned(),
                Verdict::Reject { .. } => format!("rejected ({code})"),
                _ => format!("failed ({code})"),
            };
            println!("   {:<12} attempt {attempt}: {outcome} in {} ms", delivery.destination, took.as_millis());
        }
        Event::Waiting { delivery, pause } => {
            println!("   {:<12} next attempt in {} ms", delivery.destination, pause.as_millis());
        }
        Event::DeadLettered { delivery, reason } => {
            println!("   {:<12} given up: {}", delivery.destination, reason.as_str());
        }
        _ => {}
    }
}

/// Does what `curl -d … /orders` would do, and returns the status.
async fn order(shop: &Shop, item: &str, card: &str) -> Result<u16, Failure> {
    let body = serde_json::json!({ "item": item, "email": "ada@example.org", "card": card }).to_string();
    let host = shop.url().trim_start_matches("http://");
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut connection = TcpStream::connect(host).await?;
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).ok_or("the shop did not answer")?;
    Ok(status.parse()?)
}

fn expect(truth: bool, otherwise: &str) -> Result<(), Failure> {
    if truth { Ok(()) } else { Err(otherwise.into()) }
}
