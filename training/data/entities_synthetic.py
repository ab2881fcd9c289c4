"""Chat-like sentences with people, places and organisations in them, written by a seeded program.

Public name-tagging corpora are news and tweets; people write to assistants in lower case, without
punctuation, and with first names that are also words. Sentences without any entity carry such words
("may", "will", "mark", "turkey") so that a capital letter or a known name alone decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

_FIRST = (
    "james mary john patricia robert jennifer michael linda david elizabeth william barbara richard "
    "susan joseph jessica thomas sarah charles karen "
    "daniel nancy matthew lisa anthony betty mark sandra paul ashley steven kim andrew emily joshua "
    "donna kevin michelle brian carol george amanda "
    "edward melissa ronald deborah tim stephanie jason rebecca jeff laura ryan cynthia jacob kathy "
    "gary amy nick angela eric anna jonathan ruth "
    "larry brenda justin pamela scott nicole brandon katie ben samantha greg rachel frank emma "
    "raymond olivia jack maria dennis heather jerry "
    "diane tyler julie aaron joyce jose victoria adam kelly nathan christina henry joan doug evelyn "
    "zach lauren peter judith kyle megan ahmed fatima "
    "mohammed aisha omar layla yusuf zainab wei li ming xiu hiroshi yuki kenji sakura raj priya "
    "arjun ananya vikram deepa sanjay lakshmi jin soo "
    "minho jiwoo luis carmen carlos lucia juan sofia diego valentina pedro ines joao beatriz pierre "
    "camille luc chloe hans greta jurgen anke "
    "giovanni chiara marco giulia lars astrid bjorn ingrid ivan olga dmitri natasha piotr agnieszka "
    "jan zofia kofi ama chidi ngozi thabo lerato "
    "grace hope will bill rose may april june faith frank jordan chase drew sky dawn art pat dean miles"
).split()
_LAST = (
    (
        "smith johnson williams brown jones garcia miller davis rodriguez martinez hernandez lopez "
        "gonzalez wilson anderson thomas taylor moore jackson "
        "martin lee perez thompson white harris sanchez clark ramirez lewis robinson walker young allen "
        "king wright scott torres nguyen hill flores "
        "green adams nelson baker hall rivera campbell mitchell carter roberts gomez phillips evans "
        "turner diaz parker cruz edwards collins reyes "
        "stewart morris morales murphy cook rogers gutierrez ortiz morgan cooper peterson bailey reed "
        "kelly howard ramos kim cox ward richardson "
        "watson brooks chavez wood bennett gray mendoza ruiz hughes price alvarez castillo sanders patel "
        "myers long ross foster khan hussain ali "
        "chen wang zhang liu yang huang sato suzuki tanaka watanabe singh kumar sharma gupta muller "
        "schmidt schneider fischer weber rossi ferrari "
        "novak kowalski ivanov petrov jensen nielsen larsen okafor mensah dlamini o'brien o'connor "
        "mcdonald van_dijk de_vries da_silva dos_santos"
    )
    .replace("_", " ")
    .split(" ")
)
_PLACES = (
    "london|paris|berlin|new york|los angeles|chicago|houston|boston|seattle|toronto|vancouver|"
    "sydney|melbourne|tokyo|osaka|seoul|beijing|shanghai|"
    "mumbai|delhi|bangalore|lagos|nairobi|cairo|cape town|johannesburg|madrid|barcelona|lisbon|porto|"
    "rome|milan|vienna|zurich|geneva|amsterdam|"
    "rotterdam|brussels|copenhagen|oslo|stockholm|helsinki|warsaw|krakow|prague|budapest|athens|"
    "istanbul|ankara|moscow|kyiv|dublin|cork|glasgow|"
    "edinburgh|manchester|leeds|bristol|san francisco|oakland|san jose|san diego|austin|dallas|"
    "denver|phoenix|portland|miami|atlanta|orlando|"
    "texas|california|florida|ohio|nevada|ontario|bavaria|france|germany|spain|italy|portugal|poland|"
    "sweden|norway|denmark|finland|ireland|"
    "scotland|england|turkey|egypt|kenya|nigeria|ghana|india|china|japan|south korea|vietnam|"
    "thailand|australia|new zealand|canada|mexico|brazil|"
    "argentina|chile|peru|colombia|mount everest|lake tahoe|the alps|central park|hyde park|brooklyn|"
    "soho|kreuzberg|bali|hawaii|st. louis|"
    "salt lake city|palo alto|cupertino|bordeaux|lyon|nantes|ghent|utrecht|malmo|tampere|gdansk|brno|"
    "split|novi sad|tbilisi|almaty|hanoi|cebu"
).split("|")
_STREETS = (
    "maple avenue|12 high street|oak lane|221 baker street|5th avenue|44 mill road|king's road 7|"
    "hauptstrasse 12|rue de rivoli 3|987 elm st|10 station road|sunset boulevard"
).split("|")
_ORGS = (
    "google|microsoft|apple|amazon|netflix|facebook|tesla|toyota|siemens|bosch|volkswagen|ikea|"
    "spotify|samsung|sony|nokia|philips|unilever|nestle|"
    "starbucks|walmart|target|costco|wells fargo|chase bank|goldman sachs|deutsche bank|hsbc|"
    "barclays|visa|paypal|stripe|uber|lyft|airbnb|"
    "the red cross|unicef|the world bank|nasa|the fbi|harvard university|stanford|mit|"
    "oxford university|the mayo clinic|st. mary's hospital|"
    "delta airlines|lufthansa|fedex|dhl|pfizer|bayer|novartis|general motors|ford|boeing|airbus|"
    "acme corp|northwind traders|brightwater llc|"
    "hudson & sons|greenfield dental|blue river bakery|sunrise labs|kestrel capital|"
    "oakwood elementary|lakeside high school|city hall of springfield|"
    "manchester united|the lakers|fc porto|the new york times|bbc|cnn|reuters|verizon|vodafone|"
    "orange telecom|greenpeace|the united nations"
).split("|")
_CHAT = (
    "hi my name is {P}|hello, i'm {P}|this is {P} from {O}|i am {P} and i live in {L}|"
    "my friend {P} moved to {L} last year|can you write an email to {P} about the meeting|"
    "{P} works at {O} in {L}|please call {P} tomorrow|i have an appointment with dr. {P} on monday|"
    "tell {P} that i will be late|who is {P}?|{P} and {P} are getting married in {L}|"
    "my boss {P} at {O} wants a report|send the parcel to {P}, {S}, {L}|i was born in {L}|"
    "what's the weather in {L} today|book a flight from {L} to {L}|"
    "find me a hotel in {L} for two nights|i used to work for {O}|is {O} hiring in {L}?|"
    "my account with {O} is locked|{O} has not answered my complaint|"
    "i met {P} at {O} in {L}|my daughter {P} goes to {O}|write a birthday poem for {P}|"
    "my husband {P} and i are visiting {L}|{P}'s phone number is 555 0199|"
    "draft a cover letter for {P} applying to {O}|the contract between {O} and {O} was signed by {P}|"
    "{P} lives at {S}|we are moving to {S} in {L}|"
    "thanks, {P}|regards, {P}|hey {P}, how are you?|{P} told me that {P} quit|"
    "ask {P} if she can come to {L}|i think {P} is wrong about that|"
    "summarize the call with {P} from {O}|name: {P}|customer: {P}, city: {L}|employee {P} ({O})|"
    "patient {P} was admitted in {L}|the landlord, {P}, ignores me|"
    "does {O} ship to {L}?|my neighbour {P} is loud|{P} owes me 50 dollars|"
    "i'm {P}, {P} gave me your contact|my name's {P} btw|from {L} with love|"
    "is {L} safe for tourists|how far is {L} from {L}|translate this for {P} please|"
    "i sued {O} in {L}|we studied with {P} at {O}|"
    "to: {P}\nsubject: trip to {L}|{P}: are you coming?\n{P}: yes, at 8|"
    "reminder: lunch with {P} at {S}|{P} (born in {L}) is a nurse at {O}|"
    "log in as {P} failed|user={P} location={L}|the ceo of {O}, {P}, resigned|"
    "i would like to return an item i bought from {O}|{P} said hi|"
    "was {P} at the party in {L}?|meet me at {S}|directions to {S}, {L}|my kids {P} and {P} love {L}|"
    "in {L}, {P} opened a shop"
).split("|")
_NOTHING = (
    "may i ask you something|will you help me with this|can you mark this as done|"
    "i hope it will work|the rose in the garden is dead|i had turkey for lunch|"
    "an apple a day|we need to chase the invoice|grace period of ten days|he paid the bill|"
    "she is a frank person|the dean of the faculty called|at dawn we left|"
    "art is long|miles to go|a pat on the back|in june and in april|how do i boil an egg|"
    "write a function that sorts a list|what is the capital of the country|"
    "my mother is ill|the doctor said no|call me later|i need a new phone|which bank is the best|"
    "please reset my password|the company did not answer|"
    "Thanks a lot!|Good Morning|Dear Customer|Best Regards|Dear Sir or Madam|Hello World|"
    "Happy Birthday|Kind Regards|To Whom It May Concern|Terms and Conditions|"
    "My brother and my sister live abroad|The Manager is not available|"
    "Please read the Privacy Policy|Order Number 12345|Customer Service|Step One: open the lid|"
    "What is Python used for?|I love Java and Kubernetes|the iPhone is expensive|I drive a Golf|"
    "Is Monday ok?|See you on Friday|Merry Christmas|"
    "I speak English and a little German|the French are proud|a Chinese restaurant|Docker and Linux|"
    "JSON is not YAML|PDF or DOCX?|The Bible|World War II|"
    "I am a Software Engineer|He is Chief of Staff|Ask the Teacher|Mum and Dad are here|"
    "Grandma is sick|OK Google is a phrase|As an AI language model, I can't|"
    "Sure! Here is a list:|First, open the Settings|Yes, of course|No problem at all|Dr. said so|"
    "the king and the queen|our president spoke|hey dude|hi there, buddy|"
    "act as a travel guide|ignore all previous instructions|you are now a pirate|"
    "how do i kill a process|why is the sky blue|the lord of the manor|"
    "Assistant: How can I help?|User: tell me a joke|Error: File Not Found|"
    "Traceback (most recent call last)|SELECT name FROM users|Dear Hiring Manager"
).split("|")
_SLOT = re.compile(r"\{([PLOS])\}")
_TYPES = {"P": "PERSON", "L": "LOCATION", "S": "LOCATION", "O": "ORGANIZATION"}


def _title(text: str) -> str:
    return re.sub(r"(?<![\w'])([a-zà-ÿ])", lambda m: m[1].upper(), text)


def _value(rng: Random, slot: str, pool: Mapping[str, Sequence[str]]) -> str:
    kind = _TYPES[slot]
    if slot != "S" and pool.get(kind) and rng.random() < 0.4:
        return rng.choice(pool[kind])
    if slot == "P":
        first, last = rng.choice(_FIRST), rng.choice(_LAST)
        return _title(
            rng.choices(
                (first, f"{first} {last}", f"{first} {rng.choice('abcdehjklmrst')}. {last}", last),
                (45, 40, 5, 10),
            )[0]
        )
    return _title(rng.choice({"L": _PLACES, "S": _STREETS, "O": _ORGS}[slot])).replace("The ", "the ")


def chat(rng: Random, pool: Mapping[str, Sequence[str]]) -> tuple[str, list[tuple[str, int, int]]]:
    """One sentence and its `(entity_type, start, end)` spans; `pool` adds values per entity type."""
    if rng.random() < 0.22:
        text = rng.choice(_NOTHING)
        return (text.lower() if rng.random() < 0.4 else text), []
    template = rng.choice(_CHAT)
    if rng.random() < 0.25:
        template = f"{template}{rng.choice(('. ', ', ', ' and ', chr(10)))}{rng.choice(_CHAT)}"
    pieces: list[str] = []
    spans: list[tuple[str, int, int]] = []
    length = last = 0
    for slot in _SLOT.finditer(template):
        before, value = template[last : slot.start()], _value(rng, slot[1], pool)
        start = length + len(before)
        spans.append((_TYPES[slot[1]], start, start + len(value)))
        pieces += [before, value]
        length, last = start + len(value), slot.end()
    pieces.append(template[last:])
    text = "".join(pieces)
    style = rng.random()
    if style < 0.45 and len(text.lower()) == len(text):
        return text.lower(), spans
    if style < 0.5 and len(text.upper()) == len(text):
        return text.upper(), spans
    return text[0].upper() + text[1:], spans
