/*
 * The outstanding requests of a server, in order: one small integer each, in a ring that grows by doubling. The pooler
 * releases a server only when this queue is empty. An entry too many keeps the server from other clients; an entry too
 * few gives the next client another client's answer.
 *
 * CopyData, CopyDone and CopyFail are in the queue too, as marks (a run of CopyData has one mark), because the effect
 * of a Sync depends on whether it is inside a COPY. They have no answer: a mark is dropped as soon as it is the oldest
 * entry.
 */
import { PqMsg } from '../wire/packets';
import { NoteKind, type PgPreparedStatement, type RequestNote } from './prepare';

/** What to do with the answer to a request (PgBouncer's ResponseAction). */
export const enum ResponseAction {
  FORWARD = 0,
  /** the client did not send the request: drop the answer */
  SKIP = 1,
  /** the request was not sent to the server: make up the answer at this position of the pipeline */
  FAKE = 2,
}

/** The request that a packet of this type answers completely; 0 = none, or decided in session/server.ts. */
export const ANSWERED = new Uint8Array(256);
ANSWERED[PqMsg.ParseComplete] = PqMsg.Parse;
ANSWERED[PqMsg.BindComplete] = PqMsg.Bind;
ANSWERED[PqMsg.CloseComplete] = PqMsg.Close;
ANSWERED[PqMsg.NoData] = PqMsg.Describe;
ANSWERED[PqMsg.RowDescription] = PqMsg.Describe;
ANSWERED[PqMsg.EmptyQueryResponse] = PqMsg.Execute;
ANSWERED[PqMsg.PortalSuspended] = PqMsg.Execute;

/** The subject of a client's Parse of the unnamed statement: no query has this number. */
export const UNNAMED = 0xffff_ffff;
/** The subject of the pooler's own Parse of a client's unnamed statement, after a change of server. */
export const UNNAMED_AGAIN = 0xffff_fffe;

/** An entry taken out of its queue. */
export interface Request {
  readonly type: number;
  readonly action: ResponseAction;
  readonly note: RequestNote | null;
  readonly subject: number;
}

const INITIAL_SLOTS = 16;
/** The bits of an entry: type byte, action, and whether it has a note. */
const TYPE_MASK = 0xff;
const ACTION_SHIFT = 8;
const ACTION_MASK = 3;
const NOTE_BIT = 0x400;
/** Number of unused notes at the start of the array from which on it is trimmed. */
const NOTES_TRIM = 64;

function isCopyMark(type: number): boolean {
  return type === PqMsg.CopyDone || type === PqMsg.CopyData || type === PqMsg.CopyFail;
}

export class RequestQueue {
  private slots: Uint16Array = new Uint16Array(INITIAL_SLOTS);
  /** the statement that each entry concerns: see push() */
  private subjects: Uint32Array = new Uint32Array(INITIAL_SLOTS);
  private head = 0;
  count = 0;
  /** number of entries ever added */
  total = 0;
  /** `total` when the server was last idle outside a transaction; equal to `total` while nothing has been sent since */
  readyTotal = 0;
  /** Number of Syncs ever added. In a segment, requests succeed up to the first failure, and are skipped after it. */
  segment = 0;
  /** number of entries whose answers are made up */
  fakes = 0;
  /** UNNAMED or UNNAMED_AGAIN: the last clearUntil() dropped such a Parse; 0 = none. UNNAMED takes precedence. */
  droppedUnnamed = 0;
  /** the notes of the entries that have one, in the queue's order; null because most servers never need it */
  private notes: (RequestNote | null)[] | null = null;
  private notesHead = 0;

  /**
   * Adds a request.
   * @param type the message's type byte
   * @param note what to undo if the server skips the request; the caller takes it with firstNote() before shift()
   * @param subject number of the query whose statement on the server the request uses; UNNAMED for a Parse; else 0
   */
  push(type: number, action: ResponseAction, note: RequestNote | null = null, subject = 0): void {
    if (this.count === this.slots.length) this.grow();
    let slot = type | (action << ACTION_SHIFT);
    if (note !== null) {
      slot |= NOTE_BIT;
      note.segment = this.segment;
      if (this.notes === null) this.notes = [];
      this.notes.push(note);
    }
    if (action === ResponseAction.FAKE) this.fakes++;
    if (type === PqMsg.Sync) this.segment++;
    const index = (this.head + this.count) & (this.slots.length - 1);
    this.slots[index] = slot;
    this.subjects[index] = subject;
    this.count++;
    this.total++;
  }

  /** The server is idle outside a transaction and has no outstanding requests. */
  markReady(): void {
    if (this.count === 0) this.readyTotal = this.total;
  }

  /** True while nothing has been sent since the server was last idle outside a transaction. */
  atStart(): boolean {
    return this.total === this.readyTotal;
  }

  /** True if there is an outstanding Sync: a failure now does not affect requests added later. */
  hasSync(): boolean {
    for (let at = 0; at < this.count; at++) if ((this.entryAt(at) & TYPE_MASK) === PqMsg.Sync) return true;
    return false;
  }

  /** True if an outstanding request may fail so that the server skips the next one. */
  maySkip(): boolean {
    return this.count > 0 && (this.entryAt(this.count - 1) & TYPE_MASK) !== PqMsg.Sync;
  }

  /** True if an outstanding request has a note. */
  hasNotes(): boolean {
    return this.notes !== null && this.notes.length > this.notesHead;
  }

  /** True if an outstanding request has a note of this kind. */
  hasNote(kind: NoteKind): boolean {
    if (this.notes === null) return false;
    for (let i = this.notesHead; i < this.notes.length; i++) if (this.notes[i]?.kind === kind) return true;
    return false;
  }

  /** True if an earlier segment prepares or closes this query on the server, and may still be skipped. */
  mayChange(ps: PgPreparedStatement): boolean {
    if (this.notes === null) return false;
    for (let i = this.notesHead; i < this.notes.length; i++) {
      const note = this.notes[i] as RequestNote;
      // the notes are in the queue's order
      if (note.segment === this.segment) return false;
      if (note.server?.ps === ps) return true;
    }
    return false;
  }

  /** For each query that outstanding requests close on the server, the note of the first such request. */
  closes(): Map<PgPreparedStatement, RequestNote> {
    const first = new Map<PgPreparedStatement, RequestNote>();
    if (this.notes === null) return first;
    for (let i = this.notesHead; i < this.notes.length; i++) {
      const note = this.notes[i] as RequestNote;
      if (note.kind === NoteKind.CLOSE && note.server !== null && !first.has(note.server.ps))
        first.set(note.server.ps, note);
    }
    return first;
  }

  /** True if a Parse of the unnamed statement is outstanding. */
  hasUnnamedParse(): boolean {
    for (let at = 0; at < this.count; at++) if (this.subjectAt(at) >= UNNAMED_AGAIN) return true;
    return false;
  }

  /** The segment, as `segment` counts, of the newest outstanding Parse of the unnamed statement; 0 if there is none. */
  unnamedSegment(): number {
    let segment = this.segment;
    for (let at = this.count - 1; at >= 0; at--) {
      if ((this.entryAt(at) & TYPE_MASK) === PqMsg.Sync) segment--;
      if (this.subjectAt(at) >= UNNAMED_AGAIN) return segment;
    }
    return 0;
  }

  /** Removes all entries without settling their notes: for a batch that is sent again. */
  takeAll(): Request[] {
    const notes = this.allNotes();
    const all: Request[] = [];
    for (let at = 0; at < this.count; at++) {
      const slot = this.slots[(this.head + at) & (this.slots.length - 1)] as number;
      const note = (slot & NOTE_BIT) === 0 ? null : (notes.shift() ?? null);
      const action = ((slot >> ACTION_SHIFT) & ACTION_MASK) as ResponseAction;
      all.push({ type: slot & TYPE_MASK, action, note, subject: this.subjectAt(at) });
    }
    this.clear();
    return all;
  }

  /** Adds a mark: CopyData, CopyDone or CopyFail. */
  markCopy(type: number): void {
    if (this.count === 0) return;
    if (type === PqMsg.CopyData && (this.entryAt(this.count - 1) & TYPE_MASK) === PqMsg.CopyData) return;
    this.push(type, ResponseAction.FORWARD);
  }

  /**
   * True if a COPY may be under way when the server gets to the next packet. If not, PostgreSQL ignores CopyData, CopyDone
   * and CopyFail, unless statement_timeout has expired since a Parse before them: then it reports that, and adds a
   * ReadyForQuery that answers no request. After a reboot from PgBouncer nothing is known about earlier requests.
   */
  mayCopy(): boolean {
    for (let at = this.count - 1; at >= 0; at--) {
      const type = this.entryAt(at) & TYPE_MASK;
      if (!isCopyMark(type) && type !== PqMsg.Sync) return type === PqMsg.Query || type === PqMsg.Execute;
    }
    return this.total === this.count;
  }

  /** True if a packet of COPY follows the oldest request, which is an Execute that has not begun a COPY. */
  hasStrayCopy(): boolean {
    return this.count > 1 && this.firstType() === PqMsg.Execute && isCopyMark(this.entryAt(1) & TYPE_MASK);
  }

  /**
   * The COPY begun by the oldest request has ended: drops the entries that the server consumed as part of it, up to
   * CopyDone or CopyFail. If the COPY failed, a Sync after the first data may have been received after the failure, and
   * is answered: it stays.
   * @param failed the server reported an error
   */
  endCopy(failed: boolean): void {
    let drop = 0;
    let data = false;
    for (let at = 1; at < this.count; at++) {
      const type = this.entryAt(at) & TYPE_MASK;
      if (type === PqMsg.CopyData) data = true;
      else if (type !== PqMsg.CopyDone && type !== PqMsg.CopyFail && (type !== PqMsg.Sync || (failed && data))) break;
      drop++;
      if (type === PqMsg.CopyDone || type === PqMsg.CopyFail) break;
    }
    if (drop === 0) return;
    // the dropped entries have no notes and no made-up answers: move the oldest entry to the position of the last
    const oldest = this.slots[this.head] as number;
    const subject = this.subjects[this.head] as number;
    this.head = (this.head + drop) & (this.slots.length - 1);
    this.slots[this.head] = oldest;
    this.subjects[this.head] = subject;
    this.count -= drop;
  }

  /** True if the newest request belongs to a pipeline that has no Sync yet. */
  owesSync(): boolean {
    if (this.count === 0) return false;
    // a server that is not in a COPY ignores its packets
    let newest = this.count - 1;
    while (newest > 0 && isCopyMark(this.entryAt(newest) & TYPE_MASK)) newest--;
    switch (this.entryAt(newest) & TYPE_MASK) {
      case PqMsg.Parse:
      case PqMsg.Bind:
      case PqMsg.Describe:
      case PqMsg.Close:
      case PqMsg.Execute:
        return true;
      default:
        return false;
    }
  }

  /** Type byte of the oldest request, 0 if there is none. */
  firstType(): number {
    return this.count === 0 ? 0 : (this.slots[this.head] as number) & TYPE_MASK;
  }

  /** What to do with the answer to the oldest request, which must exist. */
  firstAction(): ResponseAction {
    return (((this.slots[this.head] as number) >> ACTION_SHIFT) & ACTION_MASK) as ResponseAction;
  }

  /** The note of the oldest request, which must exist. */
  firstNote(): RequestNote | null {
    if (((this.slots[this.head] as number) & NOTE_BIT) === 0) return null;
    return (this.notes as (RequestNote | null)[])[this.notesHead] as RequestNote;
  }

  /** The entry at distance `at` from the oldest: type | action << 8. */
  entryAt(at: number): number {
    return (this.slots[(this.head + at) & (this.slots.length - 1)] as number) & ~NOTE_BIT;
  }

  /** The subject of the entry at distance `at` from the oldest. */
  subjectAt(at: number): number {
    return this.subjects[(this.head + at) & (this.subjects.length - 1)] as number;
  }

  /** Calls `visit` for each note and the distance of its request from the oldest, oldest first. */
  eachNote(visit: (note: RequestNote, at: number) => void): void {
    let index = this.notesHead;
    for (let at = 0; at < this.count; at++) {
      if (((this.slots[(this.head + at) & (this.slots.length - 1)] as number) & NOTE_BIT) === 0) continue;
      visit((this.notes as (RequestNote | null)[])[index++] as RequestNote, at);
    }
  }

  /** The notes of all requests, oldest first. */
  allNotes(): RequestNote[] {
    return this.notes === null ? [] : (this.notes.slice(this.notesHead) as RequestNote[]);
  }

  /** Removes the oldest request. */
  shift(): void {
    const slot = this.slots[this.head] as number;
    if (slot > TYPE_MASK) {
      if ((slot & NOTE_BIT) !== 0) this.shiftNote();
      if (((slot >> ACTION_SHIFT) & ACTION_MASK) === ResponseAction.FAKE) this.fakes--;
    }
    this.head = (this.head + 1) & (this.slots.length - 1);
    this.count--;
    // the server has consumed these marks, since it got past the requests before them
    while (this.count > 0 && isCopyMark((this.slots[this.head] as number) & TYPE_MASK)) {
      this.head = (this.head + 1) & (this.slots.length - 1);
      this.count--;
    }
  }

  clear(): void {
    this.head = 0;
    this.count = 0;
    this.fakes = 0;
    this.notes = null;
    this.notesHead = 0;
    // a pipeline of thousands leaves a large ring, which an idle server should not keep
    if (this.slots.length > 1024) {
      this.slots = new Uint16Array(INITIAL_SLOTS);
      this.subjects = new Uint32Array(INITIAL_SLOTS);
    }
  }

  /**
   * Removes requests up to and including the first of type `typeA` or `typeB`; all if there is none.
   * @returns the notes of the removed requests, oldest first; null if there are none
   */
  clearUntil(typeA: number, typeB: number): RequestNote[] | null {
    let dropped: RequestNote[] | null = null;
    this.droppedUnnamed = 0;
    while (this.count > 0) {
      const type = this.firstType();
      const subject = this.subjects[this.head] as number;
      if (subject >= UNNAMED_AGAIN && subject > this.droppedUnnamed) this.droppedUnnamed = subject;
      const note = this.firstNote();
      if (note !== null) {
        if (dropped === null) dropped = [];
        dropped.push(note);
      }
      this.shift();
      if (type === typeA || type === typeB) break;
    }
    return dropped;
  }

  private shiftNote(): void {
    const notes = this.notes as (RequestNote | null)[];
    notes[this.notesHead++] = null;
    if (this.notesHead === notes.length) notes.length = 0;
    else if (this.notesHead < NOTES_TRIM || this.notesHead * 2 < notes.length) return;
    else notes.splice(0, this.notesHead);
    this.notesHead = 0;
  }

  private grow(): void {
    const old = this.slots;
    const bigger = new Uint16Array(old.length * 2);
    const subjects = new Uint32Array(old.length * 2);
    for (let i = 0; i < this.count; i++) {
      bigger[i] = old[(this.head + i) & (old.length - 1)] as number;
      subjects[i] = this.subjectAt(i);
    }
    this.slots = bigger;
    this.subjects = subjects;
    this.head = 0;
  }
}
