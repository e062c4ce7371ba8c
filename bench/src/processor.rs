//! One processor for all of a measurement.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The last of the processors that this thread may run on: the first are those that most interrupts go to.
///
/// # Errors
/// Where the kernel does not say.
pub fn last() -> io::Result<usize> {
    let allowed = sched_getaffinity(None)?;
    (0..CpuSet::MAX_CPU).rev().find(|number| allowed.is_set(*number)).ok_or_else(|| {
        io::Error::other(format!("this thread may run on none of the first {}", CpuSet::MAX_CPU))
    })
}

/// Keeps this thread on one processor, and all threads that it starts from now on.
///
/// # Errors
/// Where this process may not run there.
pub fn stay_on(number: usize) -> io::Result<()> {
    if number >= CpuSet::MAX_CPU {
        let reason = format!("processor {number}: numbers go up to {}", CpuSet::MAX_CPU - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let mut set = CpuSet::new();
    set.set(number);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_stay_where_they_were_put() {
        // On a thread of its own, that no other test runs on later.
        let put = std::thread::spawn(|| {
            let number = last().unwrap();
            stay_on(number).unwrap();
            let of_child = std::thread::spawn(|| sched_getaffinity(None).unwrap()).join().unwrap();
            (number, of_child)
        });
        let (number, of_child) = put.join().unwrap();
        assert!(of_child.is_set(number) && of_child.count() == 1, "{of_child:?}");
        assert!(stay_on(CpuSet::MAX_CPU).unwrap_err().to_string().contains("1023"));
    }
}
