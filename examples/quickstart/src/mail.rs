//! "Sends" the confirmation: one .eml file for each message.

use std::path::PathBuf;

use relay::{Context, HandlerResult};

use crate::Failure;
use crate::shop::OrderPlaced;

/// A folder of sent mail.
#[derive(Clone)]
pub(crate) struct Mailbox {
    folder: PathBuf,
}

impl Mailbox {
    pub(crate) fn create(folder: PathBuf) -> Result<Mailbox, Failure> {
        std::fs::create_dir_all(&folder)?;
        Ok(Mailbox { folder })
    }

    /// The handler. The file is named after the message: should it ever come twice, it is still one mail.
    pub(crate) async fn confirm(self, order: OrderPlaced, context: Context) -> HandlerResult {
        let text = format!(
            "From: shop@example.org\r\nTo: {}\r\nSubject: Order {}\r\nMessage-ID: <{}@example.org>\r\n\r\nThank you for ordering: {}.\r\n",
            order.email,
            order.order_id,
            context.message_id(),
            order.item,
        );
        tokio::fs::write(self.folder.join(format!("{}.eml", context.message_id())), text).await?;
        Ok(())
    }

    /// The mails sent so far.
    pub(crate) fn sent(&self) -> Result<Vec<PathBuf>, Failure> {
        std::fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect()
    }
}
