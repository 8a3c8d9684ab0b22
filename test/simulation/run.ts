/*
 * Runs the simulation of one seed.
 */
import { type Options, SimulationFailure, World } from './world';

interface Outcome {
  seed: number;
  turns: number;
  /** hash of the trace */
  hash: string;
  events: number;
  /** null = no fault was found */
  failure: string | null;
  tail: string[];
}

/** Runs one seed to its end, or to its failure. */
export function simulate(options: Options): Outcome {
  const world = new World(options);
  let failure: string | null = null;
  try {
    world.run();
  } catch (err) {
    failure = err instanceof SimulationFailure ? err.message : String((err as Error).stack ?? err);
  }
  const { turns, trace } = world;
  return { seed: options.seed, turns, hash: trace.hash, events: trace.count, failure, tail: trace.tail() };
}
