//! The pool over each pinner's model: what the pool counts as pinned is what a device reaches.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::contract::Windows;
use super::guest::Guest;
use super::{Iommufd, Pinner, Type1, VfioUser, iommufd, type1, vfio_user};
use crate::{FRAME, Hold, Mode, Pool};

/// Holds and releases programs of these frames one after the other. A refusal is fine: the account
/// is true all the same, and in the end nothing is left.
fn account_is_true(
    guest: &Guest,
    pinner: impl Pinner + 'static,
    programs: &[Vec<u32>],
    windows: impl Fn() -> Windows,
) -> Result<(), TestCaseError> {
    let pool = Pool::new(guest.map(), Box::new(pinner), 8 * FRAME)
        .map_err(|error| TestCaseError::fail(error.to_string()))?;
    let reached = || windows().into_values().sum::<u64>();
    let mut hold = Hold::default();
    for frames in programs {
        hold.clear();
        frames.iter().for_each(|frame| hold.want(*frame));
        let held = pool.hold_blocking(&mut hold).is_ok();
        prop_assert_eq!(pool.pinned_bytes(), reached());
        if held {
            pool.release(&mut hold, Mode::Cached);
        }
    }
    drop(pool);
    prop_assert_eq!(reached(), 0);
    Ok(())
}

fn programs() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0..24u32, 1..10), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn over_type1(programs in programs(), room in 4..12u32) {
        let model = type1::Model::new(room, None);
        let pinner = Type1::with_iommu(model.clone(), 0, u32::MAX);
        account_is_true(&Guest::new(24), pinner, &programs, || model.windows())?;
    }

    #[test]
    fn over_iommufd(programs in programs(), locked in 4..12u64) {
        let model = iommufd::Model::new(Some(locked * FRAME));
        let pinner = Iommufd::new(model.clone(), 0);
        account_is_true(&Guest::new(24), pinner, &programs, || model.windows())?;
    }

    #[test]
    fn over_vfio_user(programs in programs(), room in 4..12u32) {
        let device = vfio_user::Device::new(room);
        let serving = device.clone();
        let pinner: VfioUser = vfio_user::connect(room, move |stream| serving.serve(stream));
        account_is_true(&Guest::in_file(24), pinner, &programs, || device.windows())?;
    }
}
