//! A slow disk delays only what waits for it, and once for many; what it cannot read now is not lost.

use std::time::Duration;

use switchback_control::{Attempt, Lane, Seq, Version};
use tokio::time::{Instant, sleep};

use crate::bench::*;

const NORMAL: Lane = Lane(0);
const CRITICAL: Lane = Lane(1);
const SLOW: Duration = Duration::from_millis(300);

/// A session with a broker, and a slow disk.
struct Scene {
    _broker: Broker,
    wire: Wire,
    rig: Rig,
    attempt: Attempt,
}

impl Scene {
    async fn new() -> Scene {
        let broker = Broker::start("max_inflight_messages 0\n");
        let wire = Wire::to(broker.port).await;
        let mut config = config(wire.port);
        config.cloud.base = String::new();
        let mut rig = Rig::new(config);
        let (attempt, _) = rig.open(Version::V5).await;
        rig.stack.told().disk_takes = Some(SLOW);
        Scene { _broker: broker, wire, rig, attempt }
    }

    /// A message of this lane.
    fn send(&self, lane: Lane, number: u64, text: &str, qos: u8) -> Seq {
        let seq = self.rig.stack.put(Seq::new(lane, number).0, "t", text.as_bytes(), qos);
        self.rig.cloud.transmit(self.attempt, seq, false);
        seq
    }

    /// Messages of the normal lane from 1 to `count`, each third with this quality.
    fn backlog(&self, count: u64, third: u8) -> Vec<Seq> {
        let qos = |n: u64| if n.is_multiple_of(3) { third } else { 1 };
        (1..=count).map(|n| self.send(NORMAL, n, &n.to_string(), qos(n))).collect()
    }

    /// What went up, in order.
    fn went(&self) -> Vec<String> {
        let text = |publish: switchback::io::packet::Publish| String::from_utf8(publish.payload).unwrap();
        self.wire.published(Version::V5).into_iter().map(text).collect()
    }
}

fn numbers(count: u64) -> Vec<String> {
    (1..=count).map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn a_backlog_costs_one_wait_for_many_messages_and_a_fresh_one_waits_for_none() {
    let mut scene = Scene::new().await;
    scene.rig.stack.told().on_disk.extend((1..=300).map(|n| Seq::new(NORMAL, n)));
    let begin = Instant::now();
    let mut seqs = scene.backlog(300, 1);
    let fresh = scene.send(CRITICAL, 1, "fresh", 1);
    scene.rig.acked(vec![fresh]).await;
    assert!(begin.elapsed() < SLOW, "it waited for the disk: {:?}", begin.elapsed());
    scene.rig.acked(std::mem::take(&mut seqs)).await;
    // One by one it would be 300 of them.
    assert!(begin.elapsed() < SLOW * 30, "{:?}", begin.elapsed());
    assert_eq!(scene.went()[0], "fresh");
    assert_eq!(scene.went()[1..], numbers(300));
}

#[tokio::test]
async fn a_pledge_holds_back_its_lane_and_no_other_and_changes_no_order() {
    let mut scene = Scene::new().await;
    let begin = Instant::now();
    let mut seqs = scene.backlog(120, 2);
    seqs.push(scene.send(CRITICAL, 1, "exact", 2));
    seqs.push(scene.send(Lane(2), 1, "bulk", 1));
    scene.rig.acked(seqs).await;
    let (others, normal): (Vec<_>, Vec<_>) = scene.went().into_iter().partition(|text| text.parse::<u64>().is_err());
    assert_eq!(normal, numbers(120));
    // What waits for nothing overtakes what waits for its pledge.
    assert_eq!(others, ["bulk", "exact"]);
    assert!(begin.elapsed() < SLOW * 20, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn what_the_disk_cannot_read_now_is_tried_again_and_nothing_of_its_lane_overtakes_it() {
    let mut scene = Scene::new().await;
    scene.rig.stack.told().on_disk.extend((1..=6).map(|n| Seq::new(NORMAL, n)));
    scene.rig.stack.told().unreadable.insert(Seq::new(NORMAL, 3));
    let mut seqs = scene.backlog(6, 1);
    seqs.push(scene.send(CRITICAL, 1, "other", 1));
    sleep(SLOW * 6).await;
    assert_eq!(scene.went(), ["other", "1", "2"]);
    scene.rig.stack.told().unreadable.clear();
    scene.rig.acked(seqs).await;
    assert_eq!(scene.went()[1..], numbers(6));
    assert!(scene.rig.stack.told().rejected.is_empty());
}
