//! Claims about plans: what is written is read, and what is drawn leaves time to heal.

use super::*;

const ROLES: [Role; 8] =
    [Role::Validator, Role::Miner, Role::Miner, Role::Miner, Role::Validator, Role::Miner, Role::Miner, Role::Miner];

fn ground(rounds: u64) -> Ground<'static> {
    Ground { roles: &ROLES, rounds, disturbed: &[true; 8] }
}

fn mixed(seed: u64, rounds: u64) -> Vec<Planned> {
    "mixed".parse::<FaultSpec>().unwrap().plan(seed, &ground(rounds))
}

#[test]
fn a_drawn_plan_is_read_back_as_it_was_written() {
    let plan = mixed(3, 5000);
    assert!(plan.len() > 500, "{}", plan.len());
    assert_eq!(written(&plan, &Cast::default()).parse::<FaultSpec>().unwrap().plan(99, &ground(5000)), plan);
    assert_eq!(mixed(3, 5000), plan);
    assert_ne!(mixed(4, 5000), plan);
}

#[test]
fn every_kind_is_drawn_and_none_in_the_calm() {
    let plan = mixed(1, 20_000);
    for kind in Kind::ALL {
        assert!(plan.iter().any(|planned| planned.kind == kind), "{kind}");
    }
    assert!(plan.iter().all(|planned| planned.round.0 % EPISODE_ROUNDS < EPISODE_ROUNDS - CALM_ROUNDS));
}

#[test]
fn what_takes_slots_away_is_healed_before_the_calm() {
    let plan = mixed(1, 20_000);
    let of_slots: Vec<&Planned> = plan.iter().filter(|planned| planned.kind.is_of_slots()).collect();
    assert!(of_slots.len() > 10, "{}", of_slots.len());
    for planned in of_slots {
        let of_episode = planned.round.0 % EPISODE_ROUNDS;
        let rounds = planned.blocks.div_ceil(16);
        assert!(of_episode + rounds <= EPISODE_ROUNDS - CALM_ROUNDS, "{planned}");
        assert!(planned.round.0 >= EPISODE_ROUNDS, "nobody has earned anything: {planned}");
    }
}

#[test]
fn a_fault_falls_only_on_whom_it_can_hurt() {
    for planned in mixed(2, 20_000) {
        match planned.who {
            Who::Node(node) => assert!(planned.kind.suits(ROLES[node]), "{planned}"),
            Who::Nodes(first, last) => assert!(first <= last && last < ROLES.len() && last - first < 2, "{planned}"),
            Who::Link(from, to) => assert!(from != to && to < ROLES.len(), "{planned}"),
            Who::Leader | Who::Chain => assert!(planned.kind.is_drawn_once(), "{planned}"),
        }
    }
}

#[test]
fn a_death_is_drawn_before_in_and_after_the_work() {
    let plan = "die=0.1".parse::<FaultSpec>().unwrap().plan(1, &ground(2000));
    let has = |is: fn(&str) -> bool| plan.iter().any(|planned| is(&planned.point));
    assert!(has(|point| point == "compressing"));
    assert!(has(|point| point == "compressor.compress"));
    assert!(has(|point| point == "compressor.compress.done"));
}

#[test]
fn one_kind_s_draws_are_its_own() {
    let dies = |spec: &str| {
        let plan = spec.parse::<FaultSpec>().unwrap().plan(1, &ground(2000));
        plan.into_iter().filter(|planned| planned.kind == Kind::Die).collect::<Vec<_>>()
    };
    assert_eq!(dies("die=0.01"), dies("die=0.01,fork=0.5,crowd=0.2"));
}

#[test]
fn what_cannot_be_read_is_named() {
    let refused = [
        "die",
        "die=2",
        "explode=0.1",
        "x@3=die",
        "3@x:saving=die",
        "chain@3:saving=die",
        "3@4=stall",
        "3@4:saving=die~x",
        "3@4=die",
        "3@4:nowhere=die",
        "3@4:nobody.save=panic",
        "3@4:saving=panic",
        "3@4:gpu-worker.mid-inner-steps=hang",
        "3@4:saving=lose-leader",
        "6-3@4=partition",
        "leader@4=partition",
        "3-6@4=unlink",
        "3@4=fork",
        "chain@4:saving=fork",
        "",
    ];
    for text in refused {
        let refused = text.parse::<FaultSpec>().unwrap_err().to_string();
        assert!(refused.contains(text), "{refused}");
    }
    let parked = "3@4:gpu-worker.mid-inner-steps=hang".parse::<FaultSpec>().unwrap_err().to_string();
    assert!(parked.contains("the only thread"), "{parked}");
}

#[test]
fn every_form_of_a_script_is_read_back() {
    let text = "3@12:sealing=die~4,3@12:compressor.compress.done=die~4,leader@9:awaiting-manifest=die~2,\
                leader@9:deciding=lose-leader~3,3-6@20=partition~8,3-6@20=cut~8,2>5@21=unlink~4,chain@40=stall~8,\
                chain@41:sealed-by=fork~2,chain@42=crowd~66,3@4:gpu-worker.mid-inner-steps=panic,5@6=late-seal";
    let spec: FaultSpec = text.parse().unwrap();
    assert_eq!(written(&spec.script, &spec.cast), text);
    let spaced: FaultSpec = "die=0.5, 3@12:sealing=die~4".parse().unwrap();
    assert_eq!((spaced.rates.len(), written(&spaced.script, &spaced.cast)), (1, "3@12:sealing=die~4".to_owned()));
}
