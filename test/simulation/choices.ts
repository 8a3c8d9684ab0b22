/*
 * What a simulated client asks next, by chance.
 */
import type { Random } from '../harness/hostile/random';
import type { Character } from './client';
import type { Request, RequestMaker } from './requests';
import { WANTS_STANDBY } from './scenario';

const ANSWERS_BIG = 60_000;
const NOTIFICATION_BIG = 500;
const CHANNELS = ['red', 'blue'];
export const PIPELINE_MAX = 6;

export class Choices {
  /** its statements, with the request that prepared each */
  readonly prepared = new Map<string, number>();
  /** its last change of application_name */
  private renamed = { unit: -1, before: '' };
  /** number of its last LISTEN; -1 = it has sent none */
  listened = -1;

  /** @param appName application_name, '' = the default */
  constructor(
    private readonly random: Random,
    private readonly make: RequestMaker,
    private readonly character: Character,
    public appName: string,
  ) {}

  /** A request was canceled: it has prepared or set nothing. */
  canceled(unit: number): void {
    for (const [name, by] of this.prepared) if (by === unit) this.prepared.delete(name);
    if (this.renamed.unit === unit) this.appName = this.renamed.before;
  }

  /** @param shares it shares a listening connection */
  next(unit: number, status: string, shares: boolean): Request {
    const { make, random } = this;
    if (status === 'E') return make.simple(unit, 'ROLLBACK', 'I');
    if (status === 'T' && random.one(4)) return make.simple(unit, random.one(3) ? 'ROLLBACK' : 'COMMIT', 'I');
    if (random.one(this.character.slowOne)) {
      return make.simple(unit, 'SELECT', status, ` slow=${random.below(this.character.slowTime)}`);
    }
    if (random.one(10)) return this.channel(unit, status, shares);
    switch (random.below(status === 'I' ? 12 : 8)) {
      case 0:
        return make.failing(unit, status === 'T' ? 'E' : status);
      case 1:
        return make.simple(unit, 'SELECT', status, ` size=${random.below(ANSWERS_BIG)}`);
      case 2:
        return make.extended(unit, 1 + random.below(PIPELINE_MAX), status);
      case 3:
        return make.copy(unit, status);
      case 4:
      case 5:
        if (this.character.prepares) return this.statement(unit, status);
        return make.simple(unit, 'SELECT', status);
      case 6:
        return make.empty(unit, status);
      case 7:
        return make.simple(unit, 'SELECT', status);
      case 8:
        return make.failingPipeline(unit, status);
      case 9:
        return this.name(unit, status);
      default:
        if (this.character.statementPooling) return make.simple(unit, 'SELECT', 'I');
        return make.simple(unit, 'BEGIN', 'T');
    }
  }

  private channel(unit: number, status: string, shares: boolean): Request {
    const { make, random } = this;
    const { listens, database } = this.character;
    const wantsStandby = WANTS_STANDBY.get(database);
    if (wantsStandby === true) return make.simple(unit, 'SELECT', status);
    if (wantsStandby === false && random.one(2)) return make.write(unit, status);
    const channel = random.pick(CHANNELS);
    if (!listens || random.one(3)) return make.notify(unit, channel, status, random.below(NOTIFICATION_BIG));
    if (this.listened >= 0 && random.one(3)) return this.unlisten(unit, status, shares, channel);
    this.listened = unit;
    if (random.one(3)) return make.listenExtended(unit, channel, status);
    return make.listen(unit, channel, status);
  }

  private unlisten(unit: number, status: string, shares: boolean, channel: string): Request {
    const { make } = this;
    if (shares) return make.unlisten(unit, this.random.one(3) ? '*' : channel, status);
    return status === 'I' ? make.unlistenAll(unit) : make.simple(unit, 'SELECT', status);
  }

  private name(unit: number, status: string): Request {
    const { random } = this;
    if (random.one(4)) return this.make.setOther(unit);
    if (random.one(2)) return this.make.showName(unit, this.appName, status);
    this.renamed = { unit, before: this.appName };
    this.appName = `${this.make.client}-${unit}`;
    return this.make.setName(unit, this.appName);
  }

  private statement(unit: number, status: string): Request {
    const { random } = this;
    const name = `s${random.below(4)}`;
    if (!this.prepared.has(name)) return this.make.prepare(unit, name, status);
    if (!random.one(6)) return this.make.runPrepared(unit, name, status);
    this.prepared.delete(name);
    return this.make.closePrepared(unit, name, status);
  }
}
