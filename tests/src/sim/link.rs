//! One direction of a link: messages on their way, each with the time it arrives.

use super::rng::Rng;

/// How bad a link is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// One message in so many is lost; 0 for none.
    pub(crate) loss: u64,
    /// One in so many arrives twice; 0 for none.
    pub(crate) repeat: u64,
    /// Longest delay, in milliseconds. Different delays are what reorders.
    pub(crate) delay_ms_max: u64,
}

impl Weather {
    pub(crate) const CALM: Weather = Weather { loss: 0, repeat: 0, delay_ms_max: 20 };

    pub(crate) fn storm(rng: &mut Rng) -> Self {
        Self {
            loss: 3 + rng.below(20),
            repeat: 4 + rng.below(20),
            delay_ms_max: [50, 1_000, 20_000][usize::try_from(rng.below(3)).unwrap()],
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Direction {
    /// (arrives at, order of sending, connection, message), unsorted.
    on_the_way: Vec<(u64, u64, u64, Vec<u8>)>,
    n_sent: u64,
}

impl Direction {
    pub(crate) fn send(
        &mut self,
        rng: &mut Rng,
        weather: Weather,
        now_ms: u64,
        connection: u64,
        bytes: &[u8],
    ) {
        if weather.loss > 0 && rng.one_in(weather.loss) {
            return;
        }
        let copies = if weather.repeat > 0 && rng.one_in(weather.repeat) { 2 } else { 1 };
        for _copy in 0..copies {
            // Most are quick; a few take as long as the weather allows.
            let delay_ms = match rng.below(4) {
                0 => rng.below(weather.delay_ms_max + 1),
                _ => 1 + rng.below(weather.delay_ms_max.min(50)),
            };
            self.n_sent += 1;
            self.on_the_way.push((now_ms + delay_ms, self.n_sent, connection, bytes.to_vec()));
        }
    }

    /// What has arrived, in order of arrival, with the connection it was sent on.
    pub(crate) fn arrived(&mut self, now_ms: u64) -> Vec<(u64, Vec<u8>)> {
        let mut arrived: Vec<_> =
            self.on_the_way.extract_if(.., |(at, ..)| *at <= now_ms).collect();
        arrived.sort_unstable_by_key(|(at, order, ..)| (*at, *order));
        arrived.into_iter().map(|(_, _, connection, bytes)| (connection, bytes)).collect()
    }

    pub(crate) fn next_arrival(&self) -> Option<u64> {
        self.on_the_way.iter().map(|(at, ..)| *at).min()
    }

    pub(crate) fn clear(&mut self) {
        self.on_the_way.clear();
    }

    pub(crate) fn n_on_the_way(&self) -> usize {
        self.on_the_way.len()
    }
}
