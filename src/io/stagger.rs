//! Tries that start one after another and race to the end (RFC 8305 section 5).
//!
//! The next try starts when the last one started has failed or has taken longer than the delay; the first to
//! succeed wins and the others are dropped at that moment. Knows nothing of what is tried.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

/// The first success, or every failure in the order in which they came. There is no limit but the tries' own.
pub async fn first<T, E, F>(tries: impl IntoIterator<Item = F>, delay: Duration) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    let mut tries = tries.into_iter().peekable();
    let mut running = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        if let Some(next) = tries.next() {
            running.spawn(next);
        }
        tokio::select! {
            Some(ended) = running.join_next() => match ended {
                Ok(Ok(winner)) => return Ok(winner),
                Ok(Err(failure)) => failures.push(failure),
                // Only a panic or a shutting runtime ends a try without a result.
                Err(_) => {}
            },
            () = sleep(delay), if tries.peek().is_some() => {}
            else => return Err(failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const DELAY: Duration = Duration::from_millis(100);

    async fn after(millis: u64, result: Result<u64, u64>) -> Result<u64, u64> {
        sleep(Duration::from_millis(millis)).await;
        result
    }

    async fn race(tries: Vec<(u64, Result<u64, u64>)>) -> (Result<u64, Vec<u64>>, u128) {
        let began = Instant::now();
        let result = first(tries.into_iter().map(|(millis, result)| after(millis, result)), DELAY).await;
        (result, began.elapsed().as_millis())
    }

    #[tokio::test]
    async fn a_quick_first_try_is_alone() {
        assert_eq!(race(vec![(50, Ok(1)), (0, Ok(2))]).await.0, Ok(1));
    }

    #[tokio::test]
    async fn a_slow_try_is_overtaken_and_a_failed_one_does_not_cost_the_delay() {
        let (result, took) = race(vec![(9000, Ok(1)), (10, Ok(2))]).await;
        assert_eq!(result, Ok(2));
        assert!((110..5000).contains(&took), "{took}");
        let (result, took) = race(vec![(5, Err(1)), (5, Ok(2))]).await;
        assert_eq!(result, Ok(2));
        assert!(took < 100, "{took}");
    }

    #[tokio::test]
    async fn every_failure_is_told_and_nothing_at_all_is_a_failure() {
        assert_eq!(race(vec![(10, Err(1)), (20, Err(2))]).await.0, Err(vec![1, 2]));
        assert_eq!(race(vec![]).await.0, Err(vec![]));
    }
}
