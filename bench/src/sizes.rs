//! `sizes`: the binaries of the build that this program is part of, and the kernel object in them.

use std::fs;

use anyhow::{Context, Result};
use quilla_datapath::Object;
use quilla_tests::binary;

use crate::table::Table;

const PROGRAMS: [&str; 4] = ["quilla-agent", "quilla-controller", "quilla-cni", "quilla"];

pub(crate) fn measure() -> Result<()> {
    let mut table = Table::new(&["binary", "bytes", "MiB"]);
    for program in PROGRAMS {
        let path = binary::path(program)?;
        let size = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.len();
        table.row(cells(program, size));
    }
    table.row(cells("kernel object, in the agent", Object::embedded().bytes().len() as u64));
    print!("{table}");
    Ok(())
}

fn cells(name: &str, size: u64) -> Vec<String> {
    let hundredths = size * 100 / (1 << 20);
    vec![name.to_owned(), size.to_string(), format!("{}.{:02}", hundredths / 100, hundredths % 100)]
}
