//! Programs that the channel reads from guest memory as it runs them (ORB.P = 0), so that what they
//! store into themselves counts.

use crate::bench::Bench;
use crate::case::Case;
use crate::input::Input;

/// One case.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    Bench::lend(|bench| {
        let case = Case::read(&mut input, &mut bench.guest);
        bench.guest.remember();
        bench.unfetched(&case);
    });
}
