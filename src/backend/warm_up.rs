//! What precedes a timing.

use crate::Result;
use std::time::{Duration, Instant};

/// How long a GPU runs before it is timed: one that was idle has clocked down. An H100 through Vulkan, after two seconds of
/// waiting for its weights, ran at 345 MHz, and 1024 tokens took 30 ms instead of 7.4; under such light work it took up
/// to two seconds to come back to 1980 MHz.
const WARM_UP: Duration = Duration::from_secs(1);

/// Runs once, and on a GPU again until [`WARM_UP`] has passed; what the last run gave.
pub(crate) fn warm_up<T>(is_cpu: bool, mut run: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = run()?;
        if is_cpu || start.elapsed() >= WARM_UP {
            return Ok(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn warming_up_is_one_run_on_a_cpu_and_a_second_on_a_gpu() {
        let runs = |is_cpu| {
            let mut n = 0;
            warm_up(is_cpu, || {
                n += 1;
                std::thread::sleep(Duration::from_millis(100));
                Ok(n)
            })
            .unwrap()
        };
        assert_eq!(runs(true), 1);
        assert!((2..=10).contains(&runs(false)));
        assert!(warm_up(false, || Err::<(), _>(Error::Interrupted)).is_err());
    }
}
