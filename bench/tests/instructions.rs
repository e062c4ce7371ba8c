//! The program counts its instructions, or says what it lacks.

use std::process::Command;

use serde_json::Value;

#[test]
fn instructions_are_counted_or_valgrind_is_asked_for() {
    let program = env!("CARGO_BIN_EXE_vfio-ccw-bench");
    let output = Command::new(program).args(["instructions", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("install the package valgrind") {
        println!("SKIPPED: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |part: &str| counts[part].as_f64().unwrap();
    // Far from what they are, but no set-up: that takes millions.
    for part in ["ring", "pin_hit", "finish"] {
        assert!(count(part) >= 5.0 && count(part) < 10_000.0, "{part}: {counts}");
    }
    // Ten CCWs and sixteen pages take more than one page or one status.
    assert!(count("translate") > count("pin_hit") + count("finish"), "{counts}");
    assert!(count("translate") < 1_000_000.0, "{counts}");
}
