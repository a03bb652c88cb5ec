/** What goes wrong in a soak, and when: a pure function of its seed. */
import { Random } from '../core/random.ts';

/** How often each is drawn, beside the others. */
const WEIGHTS = {
  'worker killed': 3,
  'worker frozen': 2,
  'connection cut': 3,
  'garbage bytes': 3,
  delay: 3,
  'coordinator killed': 2,
};

export type Kind = keyof typeof WEIGHTS;
export const KINDS = Object.keys(WEIGHTS) as Kind[];

export interface PlannedFault {
  kind: Kind;
  /** Whom it is for, unless it is the coordinator. */
  place: number;
  /** Whether bytes and connections are those of the exchange between workers, or the coordinator's. */
  exchange: boolean;
  /** After the fault before. */
  pauseSeconds: number;
  /** In [0, 1): of a delay or a freeze. */
  length: number;
}

const LEAST_PAUSE_SECONDS = 1;
const MOST_PAUSE_SECONDS = 7;
/** Never killed: its memory tells of the whole run. */
export const SPARED_PLACE = 0;

/** Without an end. */
export function* faultsOf(seed: number, places: number): Generator<PlannedFault> {
  const random = new Random(seed);
  const lots = KINDS.flatMap((kind) => new Array<Kind>(WEIGHTS[kind]).fill(kind));
  for (;;) {
    const kind = lots[random.int(lots.length)]!;
    const place = kind === 'worker killed' ? SPARED_PLACE + 1 + random.int(places - 1) : random.int(places);
    const pauseSeconds = LEAST_PAUSE_SECONDS + random.next() * (MOST_PAUSE_SECONDS - LEAST_PAUSE_SECONDS);
    yield { kind, place, exchange: random.int(2) === 0, pauseSeconds, length: random.next() };
  }
}
