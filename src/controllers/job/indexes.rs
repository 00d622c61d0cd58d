//! Completion indexes of a Job, written `0,2-4`. Follows pkg/controller/job/indexed_job_utils.go.

use std::collections::BTreeSet;

pub type Indexes = BTreeSet<i32>;

pub fn parse(text: &str) -> Indexes {
    let ranges = text.split(',').filter(|it| !it.is_empty());
    let range = |it: &str| {
        let (first, last) = it.split_once('-').unwrap_or((it, it));
        Some(first.parse::<i32>().ok()?..=last.parse::<i32>().ok()?)
    };
    ranges.filter_map(range).flatten().collect()
}

pub fn format(indexes: &Indexes) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let text = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_ranges() {
        for (text, count) in [("", 0), ("0", 1), ("0,1", 2), ("0,2-4,7", 5)] {
            assert_eq!((parse(text).len(), format(&parse(text)).as_str()), (count, text));
        }
    }
}
