//! Test runs: context in, verdict and packet out.

use std::time::{Duration, Instant};

use quilla_abi::program::{CLOCK, FROM_POD};
use quilla_abi::trace;
use quilla_datapath::{Options, TestContext, TestRunner};

use crate::support::{Bpffs, counted, frame, open};

#[test]
fn a_run_reaches_the_program_and_is_counted() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let mut runner = TestRunner::new(&datapath, FROM_POD).expect("runner");
    let packet = frame();
    let outcome = runner.run(&packet, &TestContext { mark: 7, ..TestContext::default() }).expect("run");
    assert_eq!(outcome.packet, packet);
    assert_eq!(outcome.mark, 7);
    assert_eq!(counted(&datapath), 1);
}

#[test]
fn a_traced_program_says_its_verdict() {
    let bpffs = Bpffs::new();
    let datapath = open(&Options { trace: true, ..bpffs.options() });
    let mut runner = TestRunner::new(&datapath, FROM_POD).expect("runner");
    let outcome = runner.run(&frame(), &TestContext::default()).expect("run");
    assert_ne!(outcome.cb[trace::VERDICT], 0);
}

#[test]
fn too_short_a_frame_is_an_error_and_the_runner_goes_on() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let mut runner = TestRunner::new(&datapath, FROM_POD).expect("runner");
    let error = runner.run(&[0; 4], &TestContext::default()).expect_err("no Ethernet header");
    assert!(error.to_string().contains(FROM_POD), "{error}");
    runner.run(&frame(), &TestContext::default()).expect("run");
}

/// The frequency comes from a clock's resolution; the program `clock` shows that `jiffies` agrees with it. The time
/// between two readings is known to lie between two bounds, whatever else the machine does meanwhile.
#[test]
fn jiffies_tick_at_the_frequency_we_tell_the_programs() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let mut clock = TestRunner::new(&datapath, CLOCK).expect("runner");
    let mut read = || {
        let before = Instant::now();
        let jiffies = clock.run(&frame(), &TestContext::default()).expect("run").verdict;
        (before, jiffies, Instant::now())
    };
    let told = f64::from(datapath.status().hz);
    let (before_first, first, after_first) = read();
    loop {
        let (before_last, last, after_last) = read();
        let ticks = f64::from(last.wrapping_sub(first));
        let slowest = (ticks - 1.0) / (after_last - before_first).as_secs_f64();
        let fastest = (ticks + 1.0) / (before_last - after_first).as_secs_f64();
        assert!(slowest <= told && told <= fastest, "between {slowest} and {fastest}, not {told}");
        // Narrow enough to tell 250 from 300.
        if fastest < 1.1 * slowest {
            return;
        }
        assert!(before_first.elapsed() < Duration::from_secs(30), "between {slowest} and {fastest}");
    }
}
