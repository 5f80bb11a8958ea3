-- Schema version 1 of the ledger on PostgreSQL. Run once, in a transaction, by `gateway/ledger/postgres.py`.
--
-- Locks are taken in one order by everybody: first the rows that count (an account, or the series of a step), by id; the
-- steps of a series only under the lock of their series. So there is no deadlock, and a series is changed by one at a time.

CREATE TABLE weir.account (
    id                text COLLATE "C" PRIMARY KEY,
    wanted_limit_bits bigint NOT NULL CHECK (wanted_limit_bits >= 0),  -- what was set
    limit_bits        bigint NOT NULL,                                 -- what holds: never below what is debited
    debited_bits      bigint NOT NULL DEFAULT 0,
    fence             bigint NOT NULL DEFAULT 0,                       -- how many grants there were
    frozen_fence      bigint,                                          -- grants were forgotten, the last seen one being this
    series            text COLLATE "C" REFERENCES weir.account (id),   -- of a step of a sliding window
    step_number       bigint,
    step_count        bigint,                                          -- how many steps count together, up to the newest
    newest_step       bigint NOT NULL DEFAULT 0,                       -- of a series
    CHECK (debited_bits >= 0),
    CHECK (debited_bits <= limit_bits),
    CHECK (wanted_limit_bits <= limit_bits),
    CHECK ((series IS NULL) = (step_number IS NULL) AND (series IS NULL) = (step_count IS NULL))
) WITH (fillfactor = 50);  -- room beside each row for its next version

CREATE INDEX account_step ON weir.account (series, step_number) WHERE series IS NOT NULL;

CREATE TABLE weir.lease (
    id         text COLLATE "C" PRIMARY KEY,
    holder     text NOT NULL,
    codes      text NOT NULL,  -- digest of the code set that its bits are counted under
    granted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE weir.lease_amount (
    lease         text COLLATE "C" NOT NULL REFERENCES weir.lease (id),
    account       text COLLATE "C" NOT NULL REFERENCES weir.account (id),
    bits          bigint NOT NULL CHECK (bits >= 0),
    fence         bigint NOT NULL,
    returned_bits bigint CHECK (returned_bits BETWEEN 0 AND bits),  -- NULL while open
    PRIMARY KEY (lease, account)
);

CREATE TABLE weir.holder (
    id      text PRIMARY KEY,
    seen_at timestamptz NOT NULL
);

CREATE INDEX holder_seen ON weir.holder (seen_at);

CREATE TABLE weir.limit_change (
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    account   text COLLATE "C" NOT NULL,
    from_bits bigint,  -- NULL when the account became known
    to_bits   bigint NOT NULL
);

CREATE FUNCTION weir.keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'weir.%: rows are added, never changed', TG_TABLE_NAME;
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON weir.limit_change
    FOR EACH STATEMENT EXECUTE FUNCTION weir.keep();

-- Make this transaction's commit wait, for the disk and for the synchronous standbys, as if it had changed something. What
-- it saw was committed before and lies before it in the log, so what it answers is then as durable as a grant: a grant
-- whose own wait was cancelled is visible here and on no standby.
CREATE FUNCTION weir.await_durable() RETURNS void LANGUAGE sql AS $$
    SELECT pg_logical_emit_message(true, 'weir', '')
$$;

CREATE FUNCTION weir.lock_counted(names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM weir.account
        WHERE id IN (SELECT coalesce(known.series, known.id) FROM weir.account known WHERE known.id = ANY (names))
        ORDER BY id FOR UPDATE;
END $$;

-- Steps are given with the series, and after it. Returns whether a limit that was known went up.
CREATE FUNCTION weir.set_limit(name text, bits bigint, series_name text, number bigint, count bigint)
    RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    before bigint;
BEGIN
    INSERT INTO weir.account (id, wanted_limit_bits, limit_bits, series, step_number, step_count)
        VALUES (name, bits, bits, series_name, number, count) ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        SELECT wanted_limit_bits INTO before FROM weir.account WHERE id = name FOR UPDATE;
        UPDATE weir.account SET wanted_limit_bits = bits, limit_bits = greatest(bits, debited_bits) WHERE id = name;
    END IF;
    IF series_name IS NULL AND bits IS DISTINCT FROM before THEN
        INSERT INTO weir.limit_change (account, from_bits, to_bits) VALUES (name, before, bits);
    END IF;
    RETURN series_name IS NULL AND bits > before;
END $$;

CREATE FUNCTION weir.register(names text[], bits bigint[], series_names text[], numbers bigint[], counts bigint[])
    RETURNS TABLE (raised text) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT DISTINCT ON (id) coalesce(series, name) COLLATE "C" AS id, amount
            FROM unnest(names, bits, series_names) WITH ORDINALITY AS given (name, amount, series, place)
            ORDER BY id, place DESC
    LOOP
        IF weir.set_limit(wanted.id, wanted.amount, NULL, NULL, NULL) THEN
            raised := wanted.id;
            RETURN NEXT;
        END IF;
    END LOOP;
    FOR wanted IN
        SELECT * FROM unnest(names, bits, series_names, numbers, counts) AS given (name, amount, series, number, count)
            WHERE series IS NOT NULL ORDER BY name COLLATE "C"
    LOOP
        PERFORM weir.set_limit(wanted.name, wanted.amount, wanted.series, wanted.number, wanted.count);
    END LOOP;
END $$;

-- A lease as it was granted, and what its accounts could grant beyond it now.
CREATE FUNCTION weir.tell(asked text)
    RETURNS TABLE (outcome text, account text, bits bigint, counted text, fence bigint, remaining_bits bigint)
    LANGUAGE sql AS $$
    SELECT 'granted', amount.account, amount.bits, counted.id,
        max(amount.fence) OVER (PARTITION BY counted.id), counted.limit_bits - counted.debited_bits
        FROM weir.lease_amount amount
        JOIN weir.account named ON named.id = amount.account
        JOIN weir.account counted ON counted.id = coalesce(named.series, named.id)
        WHERE amount.lease = asked
$$;

-- Let the steps that this one pushes out of every window count no more. False if the step itself is over.
CREATE FUNCTION weir.advance(step weir.account) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    newest  bigint;
    retired bigint;
BEGIN
    SELECT newest_step INTO newest FROM weir.account WHERE id = step.series;
    IF step.step_number > newest THEN
        SELECT coalesce(sum(debited_bits), 0)::bigint INTO retired FROM weir.account
            WHERE series = step.series
            AND step_number > newest - step_count AND step_number <= step.step_number - step_count;
        UPDATE weir.account SET
            newest_step = step.step_number,
            debited_bits = debited_bits - retired,
            limit_bits = greatest(wanted_limit_bits, debited_bits - retired)
            WHERE id = step.series;
    END IF;
    RETURN step.step_number >= newest - 1;
END $$;

-- One row for each account, or one row that says why not: over, frozen, behind, unknown.
CREATE FUNCTION weir.grant_lease(asked text, holder_name text, codes_digest text, names text[], lowest bigint[], highest bigint[])
    RETURNS TABLE (outcome text, account text, bits bigint, counted text, fence bigint, remaining_bits bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    named   weir.account;
    counts  weir.account;
    amounts bigint[] := '{}';
    places  text[] := '{}';  -- or the account itself: where each amount counts
BEGIN
    IF NOT EXISTS (SELECT FROM weir.lease WHERE id = asked) THEN
        PERFORM weir.lock_counted(names);
    END IF;
    -- Again: whoever held the locks may have made it.
    IF EXISTS (SELECT FROM weir.lease WHERE id = asked) THEN
        PERFORM weir.await_durable();
        RETURN QUERY SELECT * FROM weir.tell(asked);
        RETURN;
    END IF;
    FOR place IN 1 .. cardinality(names) LOOP
        account := names[place];
        IF NOT EXISTS (SELECT FROM weir.account WHERE id = names[place]) THEN
            outcome := 'unknown';
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
    FOR place IN 1 .. cardinality(names) LOOP
        account := names[place];
        SELECT * INTO named FROM weir.account WHERE id = names[place];
        IF named.series IS NOT NULL AND NOT weir.advance(named) THEN
            outcome := 'behind';
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
    FOR place IN 1 .. cardinality(names) LOOP
        account := names[place];
        SELECT * INTO named FROM weir.account WHERE id = names[place];
        SELECT * INTO counts FROM weir.account WHERE id = coalesce(named.series, named.id);
        remaining_bits := counts.limit_bits - counts.debited_bits - coalesce((  -- two steps of one series share its limit
            SELECT sum(amount) FROM unnest(amounts, places) AS planned (amount, id) WHERE planned.id = counts.id), 0);
        IF counts.frozen_fence IS NOT NULL OR remaining_bits < lowest[place] THEN
            outcome := CASE WHEN counts.frozen_fence IS NOT NULL THEN 'frozen' ELSE 'over' END;
            RETURN NEXT;
            RETURN;
        END IF;
        amounts := amounts || least(highest[place], remaining_bits);
        places := places || counts.id;
    END LOOP;
    INSERT INTO weir.lease (id, holder, codes) VALUES (asked, holder_name, codes_digest) ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN  -- made just now, of other accounts, so that the locks did not tell
        PERFORM weir.await_durable();
        RETURN QUERY SELECT * FROM weir.tell(asked);
        RETURN;
    END IF;
    FOR place IN 1 .. cardinality(names) LOOP
        SELECT * INTO named FROM weir.account WHERE id = names[place];
        -- The limit does not move here: more than remains breaks the table's own check, and with it the transaction.
        UPDATE weir.account AS counting SET debited_bits = counting.debited_bits + amounts[place], fence = counting.fence + 1
            WHERE id = coalesce(named.series, named.id) RETURNING counting.fence INTO fence;
        IF named.series IS NOT NULL THEN
            UPDATE weir.account SET
                debited_bits = debited_bits + amounts[place],
                limit_bits = greatest(wanted_limit_bits, debited_bits + amounts[place])
                WHERE id = named.id;
        END IF;
        INSERT INTO weir.lease_amount (lease, account, bits, fence) VALUES (asked, named.id, amounts[place], fence);
    END LOOP;
    RETURN QUERY SELECT * FROM weir.tell(asked);
END $$;

-- The accounts that are closed by this, or one row with the outcome `excess`.
CREATE FUNCTION weir.close_lease(asked text, holder_name text, names text[], returned bigint[])
    RETURNS TABLE (outcome text, account text, bits bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    given record;
BEGIN
    PERFORM weir.await_durable();
    IF NOT EXISTS (SELECT FROM weir.lease WHERE id = asked AND holder = holder_name) THEN
        RETURN;
    END IF;
    PERFORM weir.lock_counted(names);
    FOR given IN
        SELECT g.name, g.amount, held.bits AS granted_bits FROM unnest(names, returned) AS g (name, amount)
            LEFT JOIN weir.lease_amount held ON held.lease = asked AND held.account = g.name
    LOOP
        IF given.granted_bits IS NULL OR given.amount NOT BETWEEN 0 AND given.granted_bits THEN
            RETURN QUERY SELECT 'excess', given.name, given.amount;
            RETURN;
        END IF;
    END LOOP;
    FOR given IN
        UPDATE weir.lease_amount AS held SET returned_bits = g.amount
            FROM unnest(names, returned) AS g (name, amount), weir.account AS named
            WHERE held.lease = asked AND held.account = g.name AND held.returned_bits IS NULL AND named.id = g.name
            RETURNING named.id, named.series, named.step_number, g.amount
    LOOP
        UPDATE weir.account AS account SET
            debited_bits = account.debited_bits - given.amount,
            limit_bits = greatest(account.wanted_limit_bits, account.debited_bits - given.amount)
            WHERE account.id = given.id OR account.id = given.series AND given.step_number >
                account.newest_step - (SELECT step.step_count FROM weir.account step WHERE step.id = given.id);
        RETURN QUERY SELECT 'closed', given.id, given.amount;
    END LOOP;
END $$;

CREATE FUNCTION weir.beat(holder_name text, within_s double precision) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO weir.holder (id, seen_at) VALUES (holder_name, clock_timestamp())
        ON CONFLICT (id) DO UPDATE SET seen_at = greatest(holder.seen_at, excluded.seen_at);
    RETURN (SELECT count(*) FROM weir.holder WHERE seen_at > clock_timestamp() - make_interval(secs => within_s));
END $$;

CREATE FUNCTION weir.idle_s(holder_name text) RETURNS double precision
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT extract(epoch FROM clock_timestamp() - seen_at)::double precision FROM weir.holder WHERE id = holder_name
$$;

-- Durable like everything else: a fence that was seen here must not be forgotten by a failover. NULL: all accounts.
CREATE FUNCTION weir.states(names text[])
    RETURNS TABLE (account text, limit_bits bigint, debited_bits bigint, fence bigint, series text, frozen boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM weir.await_durable();
    RETURN QUERY
        SELECT a.id, a.limit_bits, a.debited_bits, a.fence, a.series, a.frozen_fence IS NOT NULL FROM weir.account a
            WHERE names IS NULL OR a.id = ANY (names)
            OR a.id IN (SELECT step.series FROM weir.account step WHERE step.id = ANY (names))
            ORDER BY a.id;
END $$;

-- Returns an account that is not registered, in which case nothing was done; or nothing.
CREATE FUNCTION weir.freeze(names text[], fences bigint[]) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    missing text;
BEGIN
    PERFORM FROM weir.account WHERE id = ANY (names) ORDER BY id FOR UPDATE;
    SELECT name INTO missing FROM unnest(names) AS given (name)
        WHERE NOT EXISTS (SELECT FROM weir.account WHERE id = name) LIMIT 1;
    IF missing IS NULL THEN
        UPDATE weir.account SET frozen_fence = greatest(frozen_fence, seen)
            FROM unnest(names, fences) AS given (name, seen) WHERE id = name;
    END IF;
    RETURN missing;
END $$;

CREATE FUNCTION weir.thaw(name text, lost_bits bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM weir.await_durable();
    UPDATE weir.account SET
        debited_bits = debited_bits + least(lost_bits, limit_bits - debited_bits),
        fence = greatest(fence, frozen_fence) + 1,
        frozen_fence = NULL
        WHERE id = name AND frozen_fence IS NOT NULL;
    RETURN FOUND;
END $$;

CREATE FUNCTION weir.leases(of_holder text, beginning_after text, count_max bigint)
    RETURNS TABLE (lease text, holder text, codes text, granted_at text, account text, bits bigint, returned_bits bigint)
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT page.id, page.holder, page.codes,
        to_char(page.granted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
        amount.account, amount.bits, amount.returned_bits
        FROM (
            (SELECT * FROM weir.lease WHERE of_holder IS NULL AND id > beginning_after ORDER BY id LIMIT count_max)
            UNION ALL
            (SELECT * FROM weir.lease WHERE holder = of_holder AND id > beginning_after ORDER BY id LIMIT count_max)
        ) AS page
        LEFT JOIN weir.lease_amount amount ON amount.lease = page.id
        ORDER BY page.id, amount.account
$$;
