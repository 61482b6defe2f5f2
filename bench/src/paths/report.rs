//! What is printed: figures, ratios beside what they should be, processor time, and what speaks against them.

use super::contender::{Contender, Group};
use super::metric::{Metric, gigabits};
use super::series::Series;
use super::target;
use crate::statistics::Summary;
use crate::table::Table;

/// Medians with the least and the most, a row for each contender.
pub(super) fn figures(group: Group, contenders: &[Contender], series: &[Series]) -> Table {
    let titles = series.iter().map(|one| one.metric.title());
    let mut table = Table::new(&[&["path"][..], &titles.collect::<Vec<_>>()].concat());
    for (index, contender) in of(group, contenders) {
        let mut cells = vec![contender.name.clone()];
        cells.extend(series.iter().map(|one| {
            let Summary { median, least, most } = Summary::of(&one.figures(index));
            let [median, least, most] = [median, least, most].map(|figure| one.metric.figure(figure));
            format!("{median} ({least}-{most})")
        }));
        table.row(cells);
    }
    table
}

/// Ours to each peer.
pub(super) fn ratios(group: Group, contenders: &[Contender], series: &[Series]) -> Table {
    let heading = ["ratio", "metric", "of medians", "least", "median", "most", "target", ""];
    let mut table = Table::new(&heading);
    let members: Vec<(usize, &Contender)> = of(group, contenders).collect();
    for one in series {
        for (ours, contender) in members.iter().filter(|(_, contender)| contender.is_ours()) {
            for (peer, other) in members.iter().filter(|(index, _)| index != ours) {
                let name = format!("{} / {}", contender.name, other.name);
                table.row(ratio(name, one, (*ours, *peer), target::of(group, one.metric, &other.name)));
            }
        }
    }
    table
}

fn ratio(name: String, series: &Series, (ours, peer): (usize, usize), target: Option<f64>) -> Vec<String> {
    let middle = |contender| Summary::of(&series.figures(contender)).median;
    let value = middle(ours) / middle(peer);
    let rounds = Summary::of(&series.ratios(ours, peer));
    let verdict = target.map_or("", |target| match (value >= target, series.objections.is_empty()) {
        (_, false) => "not quotable",
        (true, true) => "reached",
        (false, true) => "missed",
    });
    let mut cells = vec![name, series.metric.title().to_owned()];
    cells.extend([value, rounds.least, rounds.median, rounds.most].map(|ratio| format!("{ratio:.3}")));
    cells.extend([target.map_or_else(String::new, |target| format!("≥ {target}")), verdict.to_owned()]);
    cells
}

/// Processor time for what is transported, a row for each contender.
pub(super) fn costs(group: Group, contenders: &[Contender], series: &[Series]) -> Table {
    let title = |metric: Metric| {
        if metric.is_stream() {
            metric.title().replace("Gbit/s", "CPU s/Gbit")
        } else {
            metric.title().replace("/s", " CPU µs")
        }
    };
    let titles: Vec<String> = series.iter().map(|one| title(one.metric)).collect();
    let mut table =
        Table::new(&[&["path"][..], &titles.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    for (index, contender) in of(group, contenders) {
        let mut cells = vec![contender.name.clone()];
        cells.extend(series.iter().map(|one| {
            let Summary { median, least, most } = Summary::of(&one.costs(index));
            let [median, least, most] = [median, least, most].map(|cost| {
                if one.metric.is_stream() {
                    format!("{:.4}", cost / gigabits(1.0))
                } else {
                    format!("{:.2}", cost * 1e6)
                }
            });
            format!("{median} ({least}-{most})")
        }));
        table.row(cells);
    }
    table
}

/// How many rounds there were, and all that speaks against them, a line for each metric.
pub(super) fn objections(series: &[Series]) -> String {
    let lines = series.iter().map(|one| {
        let verdict = if one.objections.is_empty() {
            "nothing speaks against them".to_owned()
        } else {
            format!("NOT QUOTABLE: {}", one.objections.join("; "))
        };
        let (rounds, repeated) = (one.rounds(), one.repeated);
        format!("- {}: {rounds} rounds, {repeated} noisy ones left out: {verdict}", one.metric.title())
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn of(group: Group, contenders: &[Contender]) -> impl Iterator<Item = (usize, &Contender)> {
    contenders.iter().enumerate().filter(move |(_, contender)| contender.ends.group == group)
}
