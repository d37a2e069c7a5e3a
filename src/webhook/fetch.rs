//! One GET of a document of the operator's, with the same care as the POSTs: checked addresses, no redirects, bounded in time and memory.

use super::client::{Failure, FailureKind, SetupError, guarded};
use super::guard::{Guard, GuardedResolver};
use reqwest::header::ACCEPT;
use reqwest::{Client, Url};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Head and body must be there within this time.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A longer document is refused.
const DOCUMENT_MAX: usize = 1 << 20;

/// Why there is no document. It never shows the URL, which may bear credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No answer, or none that could be read whole.
    #[error("{}: {}", .0.kind.as_str(), .0.text)]
    Failed(Failure),
    /// Another answer than 200.
    #[error("the answer was {0}")]
    Status(u16),
    /// More than anybody needs.
    #[error("the document is longer than {DOCUMENT_MAX} bytes")]
    TooLong,
}

/// Where a document is. `Debug` never shows its URL.
pub struct Source {
    client: Client,
    url: Url,
    guard: Guard,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl Source {
    /// The document at `url`.
    pub fn new(url: Url, guard: Guard) -> Result<Self, SetupError> {
        guard.check_url(&url)?;
        let client = guarded(Arc::new(GuardedResolver::of_the_system(guard.clone())));
        Ok(Self { client: client.build().map_err(SetupError::Client)?, url, guard })
    }

    /// Whether it is the document at this URL, under this guard.
    pub fn is_of(&self, url: &Url, guard: &Guard) -> bool {
        (&self.url, &self.guard) == (url, guard)
    }

    /// The document as it is now.
    ///
    /// # Cancel safety
    /// A dropped call has no effect.
    pub async fn fetch(&self) -> Result<Vec<u8>, FetchError> {
        if let Err(refused) = self.guard.check_url(&self.url) {
            return Err(FetchError::Failed(Failure::without_answer(FailureKind::Address, &refused)));
        }
        match tokio::time::timeout(TIMEOUT, self.read()).await {
            Ok(read) => read,
            Err(elapsed) => Err(FetchError::Failed(Failure::without_answer(FailureKind::Timeout, &elapsed))),
        }
    }

    async fn read(&self) -> Result<Vec<u8>, FetchError> {
        let failed = |error| FetchError::Failed(Failure::of_error(error));
        let mut response =
            self.client.get(self.url.clone()).header(ACCEPT, "application/json").send().await.map_err(failed)?;
        if response.status().as_u16() != 200 {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if document.len() + chunk.len() > DOCUMENT_MAX {
                return Err(FetchError::TooLong);
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }
}
