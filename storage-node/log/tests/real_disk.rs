//! The log on a real file system: made, filled, opened again.

use anyhow::{Result, bail};
use bytes::Bytes;
use longshore_io::real::RealDisk;
use longshore_log::{Entry, Fetched, LogConfig, NodeLog};
use longshore_wire::{Index, ShardId, Term};
use std::sync::Arc;

const GROUP: ShardId = ShardId(1);

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 256 << 10,
        batch_bytes_max: 64 << 10,
        tail_bytes_max: 32 << 10,
        ..LogConfig::default()
    }
}

fn entry(index: u64) -> Entry {
    let data = Bytes::from(vec![index as u8; 5000]);
    Entry { index: Index(index), term: Term(1), kind: 0, context: Bytes::from_static(b"stamp"), data }
}

#[test]
fn a_log_is_filled_closed_and_found_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    {
        let disk = Arc::new(RealDisk::open(directory.path())?);
        let (mut log, mut writer, _) = NodeLog::open(disk, config())?;
        for index in 1..=200 {
            log.append(GROUP, entry(index))?;
            log.applied(GROUP, Index(index - 1));
            let completion = writer.write(log.take_request().into_iter().collect())?;
            log.completed(completion);
            if let Some(job) = log.maintain() {
                log.maintained(job.run())?;
            }
        }
        assert!(log.segments().len() > 3);
    }
    let disk = Arc::new(RealDisk::open(directory.path())?);
    let (log, _, recovery) = NodeLog::open(disk, config())?;
    assert!(recovery.damage.is_empty() && recovery.set_aside.is_empty());
    assert_eq!(recovery.groups[&GROUP].last, Index(200));
    let Fetched::Read(task) = log.entries(GROUP, Index(1), Index(201), usize::MAX)? else {
        bail!("nothing is in memory")
    };
    assert_eq!(task.run().entries?, (1..=200).map(entry).collect::<Vec<_>>());
    Ok(())
}
