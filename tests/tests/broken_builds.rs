//! Broken builds: each deliberate mistake must break a rule in what the clients of a whole simulated cluster saw.
//!
//! Run with `--features mutations`. A panic of the code, what a gateway notices by itself, and a cluster that only never
//! serves again do not count; a node that panics is a node that died. The seed that shows a mistake is played again by the
//! sound build, which must break no rule in it. `LONGSHORE_SIM_SEED=n` tries that seed alone, `LONGSHORE_MUTATION=Name` that
//! mistake alone.

// What a sound run is reported with is of no interest here.
#[allow(dead_code, reason = "only verdicts count here")]
#[path = "../sim/mod.rs"]
mod sim;

use longshore_mutations::{Mutation, choose};
use sim::history::{Failure, Rule};
use sim::machine::panic_text;
use sim::run::play;
use sim::scenes::Scene;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Seeds that a mistake has to show in.
const SEEDS: u64 = 60;
/// What a sound build passes beside the storm, which is `simulation`'s.
const SCENES: [Scene; 8] = [
    Scene::MajorityLost,
    Scene::Blackouts,
    Scene::VotedTwice,
    Scene::Stranded,
    Scene::Overwritten,
    Scene::Paused,
    Scene::WipedInTurn,
    Scene::WipedUnseen,
];
/// Seeds of each scene that the sound build passes.
const SOUND_SEEDS: u64 = 4;
/// Shown of what was seen.
const TEXT_MAX: usize = 260;

/// Where a mistake is looked for.
fn scene(mutation: Mutation) -> Scene {
    match mutation {
        Mutation::AckBeforeSync | Mutation::PersistReadyEarly | Mutation::DuplicateAnsweredEarly => {
            Scene::MajorityLost
        }
        Mutation::VoteNotSynced => Scene::VotedTwice,
        Mutation::SyncedTailCut | Mutation::SegmentRemovedEarly => Scene::Blackouts,
        Mutation::ApplyBeforeCommit => Scene::Stranded,
        Mutation::PausedLeaderDelivers => Scene::Paused,
        Mutation::SnapshotBeforeBodies => Scene::WipedInTurn,
        Mutation::WipedNodeKeepsId => Scene::WipedUnseen,
        Mutation::IndexNamesOverwritten => Scene::Overwritten,
        Mutation::BatchNumberLost | Mutation::LeaseReused => Scene::Storm,
    }
}

/// A run of the build that makes this mistake, or of the sound one.
fn played(mutation: Option<Mutation>, seed: u64, scene: Scene) -> Result<(), Failure> {
    choose(mutation);
    let result = catch_unwind(AssertUnwindSafe(|| play(seed, scene)));
    choose(None);
    match result {
        Ok(result) => result.map(|_| ()),
        Err(panic) => {
            let noticed = vec![format!("panicked: {}", panic_text(panic.as_ref()))];
            Err(Failure { broken: Vec::new(), noticed, notes: Vec::new() })
        }
    }
}

/// What the sound build does wrong in a run.
fn unsound(seed: u64, scene: Scene) -> Option<Failure> {
    played(None, seed, scene).err()
}

/// The first rule that the mistake breaks, and the seed; or how many seeds only left a cluster that does not serve.
fn broken(mutation: Mutation, seeds: std::ops::Range<u64>) -> Result<(u64, Rule, String), u64> {
    let mut stuck = 0;
    for seed in seeds {
        let Err(failure) = played(Some(mutation), seed, scene(mutation)) else { continue };
        if let Some((rule, text)) = failure.broken.iter().find(|(rule, _)| *rule != Rule::Stuck) {
            return Ok((seed, *rule, text.chars().take(TEXT_MAX).collect()));
        }
        stuck += u64::from(!failure.broken.is_empty());
    }
    Err(stuck)
}

/// Looks for one mistake; what is wrong with what was found.
fn look_for(mutation: Mutation, seeds: std::ops::Range<u64>) -> Option<String> {
    let scene = scene(mutation);
    match broken(mutation, seeds) {
        Err(stuck) => Some(format!("{mutation:?}: no rule broken ({scene:?}), {stuck} seeds stuck")),
        Ok((seed, rule, text)) => {
            println!("{mutation:?}: {rule:?} ({scene:?}, seed {seed}): {text}");
            let sound = unsound(seed, scene);
            sound.map(|failure| format!("{mutation:?}: the sound build fails seed {seed} too: {failure}"))
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Does all of `work` on two threads; what failed.
fn on_two_threads<T: Sync>(work: &[T], each: impl Fn(&T) -> Option<String> + Sync) -> Vec<String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(item) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let wrong = each(item);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).extend(wrong);
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn every_deliberate_mistake_breaks_a_rule_that_clients_see() {
    std::panic::set_hook(Box::new(|_| {}));
    let seeds = number("LONGSHORE_SIM_SEED").map_or(0..SEEDS, |seed| seed..seed + 1);
    let only = std::env::var("LONGSHORE_MUTATION").ok();
    let chosen = |mutation: &Mutation| only.as_ref().is_none_or(|only| format!("{mutation:?}") == *only);
    let mutations: Vec<Mutation> = Mutation::ALL.into_iter().filter(chosen).collect();
    let failed = on_two_threads(&mutations, |mutation| look_for(*mutation, seeds.clone()));
    let _ = std::panic::take_hook();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The scenes are no rules that the system breaks by itself.
#[test]
fn a_sound_build_passes_the_scenes() {
    let seeds = number("LONGSHORE_SIM_SEED").map_or(100..100 + SOUND_SEEDS, |seed| seed..seed + 1);
    let work: Vec<(Scene, u64)> =
        SCENES.into_iter().flat_map(|scene| seeds.clone().map(move |seed| (scene, seed))).collect();
    let failed = on_two_threads(&work, |(scene, seed)| {
        unsound(*seed, *scene).map(|failure| format!("{scene:?}, seed {seed}: {failure}"))
    });
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
