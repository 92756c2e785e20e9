//! Random choices that are the same in each run.

/// A pseudo-random number generator (xorshift).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Equal seeds give equal numbers. A seed of 0 would give nothing but zeros.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 to `sides - 1`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// One of the choices.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[usize::try_from(self.roll(choices.len() as u64)).unwrap()]
    }
}
