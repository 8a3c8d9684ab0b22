/*
 * What clients leave behind in the session of a server, judging by the tags of CommandComplete. session/ notes the tags,
 * link/leftovers.ts decides what to do when the server is released.
 */

/** The kinds of session state that tags tell of; or'ed. */
export const enum Left {
  /** SET; a transaction's own SET LOCAL and SET TRANSACTION have the same tag */
  SETTINGS = 1,
  /** SQL's PREPARE */
  STATEMENTS = 2,
  /** LISTEN */
  CHANNELS = 4,
  /** DECLARE CURSOR; only a cursor WITH HOLD outlasts its transaction */
  CURSORS = 8,
  /** LOAD */
  LIBRARIES = 16,
}

/** For each kind, the command that a user knows. */
const COMMANDS: readonly [Left, string][] = [
  [Left.SETTINGS, 'SET'],
  [Left.STATEMENTS, 'PREPARE'],
  [Left.CHANNELS, 'LISTEN'],
  [Left.CURSORS, 'DECLARE CURSOR WITH HOLD'],
  [Left.LIBRARIES, 'LOAD'],
];

/** The commands that leave something behind, as a list for a message. @param kinds of Left, or'ed */
export function leftCommands(kinds: number): string {
  return COMMANDS.filter(([kind]) => (kinds & kind) !== 0)
    .map(([, command]) => command)
    .join(', ');
}

/** Longest tag of interest, in bytes. */
export const LEFT_TAG_MAX = 'DEALLOCATE ALL'.length + 4;

/** The state of a server connection between two transactions is that of its login, plus what is noted here. */
export class Leftovers {
  /** what may be left; Left, or'ed */
  kinds = 0;
  /** what is left for certain; Left, or'ed. A part of `kinds`. */
  certain = 0;
  /** the last ReadyForQuery reported an open transaction */
  inBlock = false;
  /** the client has been told that it keeps its server because it listens, whatever listen_mode is now */
  pinned = false;

  /* since the last ReadyForQuery */
  /** commands completed */
  commands = 0;
  /** of these, commands that set something */
  sets = 0;
  /** of these, DECLARE CURSOR */
  cursors = 0;
  /** tracked variables that the server has reported: each client gets its own value of these anyway */
  reports = 0;

  /**
   * Notes a completed command.
   * @param tag of CommandComplete; '' if longer than LEFT_TAG_MAX
   * @param restored RESET gives a variable the value that it had after the login: there is no connect_query
   */
  note(tag: string, restored: boolean): void {
    this.commands++;
    switch (tag) {
      case 'SET':
        this.sets++;
        return;
      case 'RESET':
        if (!restored) this.sets++;
        return;
      case 'DECLARE CURSOR':
        this.cursors++;
        return;
      case 'PREPARE':
        this.add(Left.STATEMENTS);
        return;
      case 'LISTEN':
        this.add(Left.CHANNELS);
        return;
      case 'LOAD':
        this.add(Left.LIBRARIES);
        return;
      case 'DEALLOCATE ALL':
        this.remove(Left.STATEMENTS);
        return;
      case 'CLOSE CURSOR ALL':
        this.cursors = 0;
        this.remove(Left.CURSORS);
        return;
      case 'DISCARD ALL':
        this.clear();
        return;
      default:
    }
  }

  /**
   * ReadyForQuery has arrived. A single command outside a transaction block has an effect for certain: inside, the tag of
   * SET does not differ from that of SET LOCAL, and not every cursor is WITH HOLD.
   * @param idle outside a transaction block now
   * @param failed an error has arrived since the last ReadyForQuery
   */
  endOfQuery(idle: boolean, failed: boolean): void {
    const single = this.commands === 1 && idle && !this.inBlock && !failed;
    // if nothing but SET was run, each report belongs to one of them
    const tracked = this.commands === this.sets && this.reports >= this.sets;
    if (this.sets > 0 && !tracked) this.add(Left.SETTINGS, single);
    if (this.cursors > 0) this.add(Left.CURSORS, single);
    this.commands = this.sets = this.cursors = this.reports = 0;
    this.inBlock = !idle;
  }

  /** Everything has been undone. @param kept what has not been */
  clear(kept = 0): void {
    this.kinds &= kept;
    this.certain &= kept;
    if (kept === 0) this.pinned = false;
  }

  /** UNLISTEN * was executed alone. In a transaction that may still fail, it does not count. */
  unlistened(): void {
    if (!this.inBlock) this.remove(Left.CHANNELS);
  }

  private add(kind: Left, certain = true): void {
    this.kinds |= kind;
    if (certain) this.certain |= kind;
  }

  private remove(kind: Left): void {
    this.kinds &= ~kind;
    this.certain &= ~kind;
    if (kind === Left.CHANNELS) this.pinned = false;
  }

  /** For a handover. */
  numbers(): number[] {
    const { kinds, certain, inBlock, commands, sets, cursors, reports, pinned } = this;
    return [kinds, certain, inBlock ? 1 : 0, commands, sets, cursors, reports, pinned ? 1 : 0];
  }

  /** Restores numbers(); a later version may append more of them. */
  restore(numbers: readonly number[]): void {
    const [kinds, certain, inBlock, commands, sets, cursors, reports, pinned] = numbers;
    this.kinds = kinds ?? 0;
    this.certain = certain ?? 0;
    this.inBlock = inBlock === 1;
    this.commands = commands ?? 0;
    this.sets = sets ?? 0;
    this.cursors = cursors ?? 0;
    this.reports = reports ?? 0;
    this.pinned = pinned === 1;
  }
}
