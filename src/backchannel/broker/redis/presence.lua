-- Keeps who is in which channel, for one node at a time, and what is to be told of it.
-- KEYS: what all keys of presence begin with (of one hash slot).
-- ARGV: verb, node, its fencing number, milliseconds of a lease, milliseconds that leaves and some joins wait,
--       the newest number that was told to this node, the number up to which it has done what it was
--       told, "1" where it finds out who has gone; then what the verb needs. Who only looks ("members",
--       "told", "count") says no node, in place of its number the silence that it has waited for, "-" for none,
--       and "0" for the rest.
-- Returns 1, milliseconds until there is something to find out (-1: nothing), what is to be told
--       (number, whether joined, channel, user), what the verb answers, and what time it is in
--       milliseconds. Or 0: the fencing number is an old one. To who only looks: 1 and the answer; or 0, and the silence that is to be waited for.
local key, verb, node, fence = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local lease, moment = tonumber(ARGV[4]), tonumber(ARGV[5])
local seen, done = tonumber(ARGV[6]), tonumber(ARGV[7])
local at_once = 1000  -- of anything, so that others are not kept waiting
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nodes, fences = key .. "nodes", key .. "fences"
local leaving = key .. "leaving"  -- when it is to be told that a user has left
local joining = key .. "joining"  -- when a join is due that waits; below 0 while the user is away
local given = key .. "given"  -- the newest number that each node was told
local held, stale, due = key .. "held:", key .. "stale:", key .. "due:"
local nowhere = "-"  -- no node: where those are whose node's lease has run out, until their leave is told

local function tell(joined, channel, user)
    local number = redis.call("INCR", key .. "number")
    redis.call("RPUSH", due .. node, cmsgpack.pack({number, joined, channel, user}))
end

-- Names the nodes that a user is at; nobody's name has a space.
local function spread(there)
    local names = {}
    for of in pairs(there) do
        names[#names + 1] = of
    end
    table.sort(names)
    return table.concat(names, " ")
end

-- Keeps where a user in a channel is, nil where out of it, and how many users are at the same nodes as
-- they: so it is known at once how many are at dead ones only.
local function put(channel, user, was, there)
    local is = there and spread(there) or ""
    if there then
        redis.call("HSET", key .. "in:" .. channel, user, cmsgpack.pack(there))
    else
        redis.call("HDEL", key .. "in:" .. channel, user)
    end
    if is == was then
        return
    end
    if is ~= "" then
        redis.call("HINCRBY", key .. "at:" .. channel, is, 1)
    end
    if was ~= "" and redis.call("HINCRBY", key .. "at:" .. channel, was, -1) <= 0 then
        redis.call("HDEL", key .. "at:" .. channel, was)
    end
end

-- Takes a node out of what is known of a user in a channel; it is told later that the last one has gone.
-- lapsed: its lease has run out. Then the user is in no list any more, and has not left yet.
local function drop(pair, of, at, lapsed)
    local channel, user = unpack(cmsgpack.unpack(pair))
    local packed = redis.call("HGET", key .. "in:" .. channel, user)
    local there = packed and cmsgpack.unpack(packed) or {}
    if not there[of] then
        return
    end
    local was = spread(there)
    there[of] = nil
    if not next(there) then
        redis.call("ZADD", leaving, at, pair)
        local joins = tonumber(redis.call("ZSCORE", joining, pair) or 0)
        if joins > 0 then
            redis.call("ZADD", joining, -joins, pair)
        end
        if lapsed then
            there[nowhere] = ""
        end
    end
    put(channel, user, was, there)
end

-- Tells that a user has joined, when that is due and the user is not away.
local function join(pair, channel, user, at)
    if at > now then
        redis.call("ZADD", joining, at, pair)
    else
        redis.call("ZREM", joining, pair)
        tell(true, channel, user)
    end
end

-- known: the node has announced this user before, who was told to have joined, to an engine that has
-- lost it since. settles: the join waits for the moment. Returns when a join is due that waits, else 0.
local function set(channel, user, devices, known, settles)
    local pair = cmsgpack.pack({channel, user})
    local packed = redis.call("HGET", key .. "in:" .. channel, user)
    redis.call("SREM", stale .. node, pair)
    if known then
        redis.call("ZREM", joining, pair)
    end
    if devices ~= "" then
        local there = packed and cmsgpack.unpack(packed) or {}
        local was = spread(there)
        there[nowhere] = nil
        there[node] = devices
        put(channel, user, was, there)
        redis.call("SADD", held .. node, pair)
        redis.call("ZREM", leaving, pair)
        if not packed and not known then
            join(pair, channel, user, settles and now + moment or now)
        end
        local joins = tonumber(redis.call("ZSCORE", joining, pair) or 0)
        if joins < 0 then  -- back within the moment: the visit goes on
            join(pair, channel, user, -joins)
        end
        return math.abs(joins) > now and math.abs(joins) or 0
    end
    redis.call("SREM", held .. node, pair)
    if not packed and known then  -- the others may have the user, and have not announced it yet
        put(channel, user, "", {})
        redis.call("ZADD", leaving, now + math.max(lease, moment), pair)
    else
        drop(pair, node, now + moment, false)
    end
    return 0
end

-- Tells of those who did not come back within the moment, unless they were not told to have joined.
local function see_off()
    local gone = redis.call("ZRANGEBYSCORE", leaving, "-inf", now, "LIMIT", 0, at_once)
    for _, pair in ipairs(gone) do
        local channel, user = unpack(cmsgpack.unpack(pair))
        local packed = redis.call("HGET", key .. "in:" .. channel, user)
        redis.call("ZREM", leaving, pair)
        put(channel, user, packed and spread(cmsgpack.unpack(packed)) or "", nil)
        if redis.call("ZREM", joining, pair) == 0 then
            tell(false, channel, user)
        end
    end
end

-- Tells of those who have stayed for the moment.
local function welcome()
    for _, pair in ipairs(redis.call("ZRANGEBYSCORE", joining, 0, now, "LIMIT", 0, at_once)) do
        local channel, user = unpack(cmsgpack.unpack(pair))
        join(pair, channel, user, now)
    end
end

-- Removes what nodes held whose lease has run out, bit by bit, and takes over what they had to tell.
local function sweep()
    local left = at_once
    local dead = redis.call("ZRANGEBYSCORE", nodes, "-inf", "(" .. now, "WITHSCORES")
    for i = 1, #dead, 2 do
        local other, lapse = dead[i], tonumber(dead[i + 1])
        redis.call("HDEL", fences, other)
        redis.call("HDEL", given, other)
        for _, packed in ipairs(redis.call("LRANGE", due .. other, 0, -1)) do
            local _, joined, channel, user = unpack(cmsgpack.unpack(packed))
            tell(joined, channel, user)
        end
        redis.call("DEL", due .. other)
        for _, which in ipairs({held, stale}) do
            local some = redis.call("SPOP", which .. other, left)
            left = left - #some
            for _, pair in ipairs(some) do
                drop(pair, other, lapse + moment, true)
            end
        end
        if left == 0 then
            return
        end
        redis.call("ZREM", nodes, other)
    end
end

-- Returns the nodes that are dead and not swept yet, as keys.
local function find_dead()
    local dead = {}
    for _, of in ipairs(redis.call("ZRANGEBYSCORE", nodes, "-inf", "(" .. now)) do
        dead[of] = true
    end
    return dead
end

-- Returns how many users of a channel are at dead nodes only, or at none since their lease has run out.
local function count_dead(channel, dead)
    local count = tonumber(redis.call("HGET", key .. "at:" .. channel, nowhere) or 0)
    local at = next(dead) and redis.call("HGETALL", key .. "at:" .. channel) or {}
    for i = 1, #at, 2 do
        local is_alive = at[i] == nowhere  -- they are counted already
        for of in string.gmatch(at[i], "%S+") do
            is_alive = is_alive or not dead[of]
        end
        count = count + (is_alive and 0 or tonumber(at[i + 1]))
    end
    return count
end

-- Returns the users of a channel, each with what its nodes described: those who are there, or those who
-- were told to have joined and not to have left.
local function find_members(channel, dead)
    local members = {}
    local found = redis.call("HGETALL", key .. "in:" .. channel)
    local some_join = verb == "told" and redis.call("EXISTS", joining) == 1
    for i = 1, #found, 2 do
        local member, there = {found[i]}, cmsgpack.unpack(found[i + 1])
        for of, devices in pairs(there) do
            if of ~= nowhere and not dead[of] then
                member[#member + 1] = devices
            end
        end
        local is_in = #member > 1 or not next(there)
        if verb == "told" then
            local pair = some_join and cmsgpack.pack({channel, found[i]})
            is_in = not (pair and redis.call("ZSCORE", joining, pair))
        end
        if is_in then
            members[#members + 1] = member
        end
    end
    return members
end

local function find(channel)
    local dead = find_dead()
    if verb == "count" then
        return redis.call("HLEN", key .. "in:" .. channel) - count_dead(channel, dead)
    end
    return find_members(channel, dead)
end

-- ── who only looks ──
-- It changes nothing, and is not heard. Where a lease has run out since a node was heard, its node is
-- dead, or the engine was away: the next node that is heard tells which. Where no node is alive there
-- is nobody, though who was away for a moment is seen off by none.
if node == "" then
    local last = redis.call("GET", key .. "heard") or ""
    if last ~= fence and (last == "" or redis.call("ZCOUNT", nodes, last, "(" .. now) > 0) then
        return {0, last}
    end
    if redis.call("ZCOUNT", nodes, now, "+inf") == 0 then
        return {1, verb == "count" and 0 or {}}
    end
    return {1, find(ARGV[9])}
end

-- ── who asks ──
local is_new = verb == "enroll" and ARGV[9] == "0"
if verb ~= "enroll" and redis.call("HGET", fences, node) ~= fence then
    return {0}
end
-- Where nobody was heard for so long that leases ran out by it, the engine was away: nobody's fault.
local last = tonumber(redis.call("GET", key .. "heard") or now)
if not is_new and now - last > lease * 2 / 3 then
    for _, other in ipairs(redis.call("ZRANGEBYSCORE", nodes, last, "+inf")) do
        redis.call("ZADD", nodes, now + lease, other)
    end
end
redis.call("SET", key .. "heard", now)
-- An engine that came back with older data has given this node, or anybody, fewer numbers than it was
-- told. One that gave it none since its lease ran out has forgotten them, and lost nothing.
local is_older = false
if verb == "enroll" then
    local newest = tonumber(redis.call("GET", key .. "number") or 0)
    local had = tonumber(redis.call("HGET", given, node) or seen)
    is_older = newest < seen or had < seen
    if newest < seen then
        redis.call("SET", key .. "number", ARGV[6])
    end
    redis.call("HSET", given, node, ARGV[6])
end
redis.call("ZADD", nodes, now + lease, node)
if ARGV[8] == "1" then
    sweep()
    see_off()
    welcome()
end

-- ── what it wants ──
local answer = {}
if verb == "enroll" then  -- whether it comes back, a name for this run of data; is it older data
    redis.call("SET", key .. "epoch", ARGV[10], "NX")
    answer = {redis.call("INCR", key .. "fence"), redis.call("GET", key .. "epoch"), is_older and 1 or 0}
    redis.call("HSET", fences, node, answer[1])
    redis.call("SUNIONSTORE", stale .. node, stale .. node, held .. node)
    redis.call("DEL", held .. node)
elseif verb == "set" then  -- channel, user, devices, known, settles ("1": yes); as often as need be
    for i = 9, #ARGV, 5 do
        local joins = set(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3] == "1", ARGV[i + 4] == "1")
        if joins > 0 then  -- which one, when its join is due
            answer[#answer + 1] = {(i - 9) / 5, joins}
        end
    end
elseif verb == "settle" then  -- what was held before and was not announced again
    for _, pair in ipairs(redis.call("SPOP", stale .. node, at_once)) do
        drop(pair, node, now + moment, false)
    end
    answer = redis.call("SCARD", stale .. node)
elseif verb == "members" or verb == "told" or verb == "count" then  -- channel
    answer = find(ARGV[9])
elseif verb == "bye" then  -- what it leaves behind is for the others, at once
    redis.call("ZADD", nodes, now - 1, node)
end

-- ── what it is told ──
local mine = due .. node
local first = redis.call("LINDEX", mine, 0)
while first and cmsgpack.unpack(first)[1] <= done do
    redis.call("LPOP", mine)
    first = redis.call("LINDEX", mine, 0)
end
local news = {}
for _, packed in ipairs(redis.call("LRANGE", mine, 0, at_once - 1)) do
    if cmsgpack.unpack(packed)[1] > seen then
        news[#news + 1] = packed
    end
end
if #news > 0 then
    redis.call("HSET", given, node, cmsgpack.unpack(news[#news])[1])
end
local wait = -1
for _, set_ in ipairs({nodes, leaving, joining}) do
    local earliest = redis.call("ZRANGEBYSCORE", set_, 0, "+inf", "WITHSCORES", "LIMIT", 0, 1)[2]
    if earliest and (wait < 0 or earliest - now + 1 < wait) then
        wait = math.max(0, earliest - now + 1)
    end
end
return {1, wait, news, answer, now}
