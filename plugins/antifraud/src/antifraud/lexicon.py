"""Words of the trade: product names that people's software writes, and words by which automation names itself."""

from __future__ import annotations

import re

#: First words of product tokens ("Name/1.0") that browsers, apps, devices and their engines write, lower case.
PEOPLES_PRODUCTS = frozenset(
    """
    mozilla applewebkit webkit khtml gecko goanna presto trident servo blink netfront webtv wekit
    chrome chromium crios crmo firefox fxios focus klar minefield phoenix firebird namoroka shiretoko granparadiso
    bonecho iceweasel icecat icedragon seamonkey palemoon waterfox basilisk k-meleon kmeleon camino fennec fluid
    safari version mobile mobilesafari opera opr opx oprgx opt oupeng opios opmobi coast navigator netscape netscape6
    msie iemobile edge edg edga edgios konqueror khtml epiphany galeon midori arora rekonq qupzilla falkon otter dwb
    uzbl luakit conkeror dillo links lynx w3m elinks netsurf hv3 amaya icab omniweb shiira sunrise ibrowse voyager
    aweb lobo qtwebengine qtwebkit qt qutebrowser surf vimprobable jumanji nintendobrowser nx nf playstation silk
    silk-accelerated samsungbrowser miuibrowser xiaomi huaweibrowser hms heytapbrowser vivobrowser oppobrowser
    realmebrowser ucbrowser ucweb ubrowser uclite ucturbo qqbrowser mqqbrowser qq metasr se maxthon mxbrowser mxnitro
    mxios yabrowser yowser yasearchbrowser yaapp atom iron vivaldi brave duckduckgo ddg puffin dolphin skyfire
    bolt teashark ovibrowser browserng series60 series40 symbianos symbian s60 nokia nokiabrowser maemo tizen tizenbrowser
    bada dolfin jasmine blackberry bb10 playbook up.browser up.link openwave obigo obigointernetbrowser teleca
    teleca-q7 maui ucbrowser polaris semc-browser netfrontlifebrowser profile configuration mmp release browser
    vendorid docomo kddi softbank j-phone vodafone willcom brew sec sony sonyericsson lg samsung mot motorola alcatel
    sagem siemens zte huawei htc sharp panasonic philips sie lge nec sanyo kyocera lenovo oppo vivo infinix tecno
    hpwos webos webostv web0s wosbrowser hbbtv smarttv smart-tv tv appletv crkey roku dvp bravia aquosbrowser netcast
    lgbrowser maple2012 nettv ce-html viera vewd espial aft fireos googletv chromecast opera-mini mini linux android
    dalvik cfnetwork darwin iphone ipad ipod ios watchos tvos macos mac build wv
    fban fbav fbios fbsv fbss fbid fblc fbop fbrv fbdv fbmd fbsn fbcr fbdi fb_iab fb4a fbpn instagram barcelona
    whatsapp messenger messengerforios twitter pinterest snapchat tiktok musical_ly bytedancewebview bytelocale
    bytefullocale byteurldetector trill line kakaotalk naver daumapps daum micromessenger wechat nettype language
    miniprogram wechatshare weibo alipayclient alipaydefined baiduboxapp bdbrowser bidubrowser baidubrowser tieba zhihu
    linkedinapp linkedin reddit redditapp telegram viber skype slack teams discord discordapp electron gsa googleapp
    newsapp flipboard applenews youtube spotify ebay ebayios amazonwebappplatform msdk mobileapp okapp vkandroidapp
    vkshare odklandroid snapchat trident zoom
    outlook thunderbird microsoft office lightning postbox evolution kmail lotus-notes eudora windows-live-mail mailbar
    ubuntu debian fedora centos redhat suse gentoo archlinux mint cros slackware mandriva kubuntu mageia
    infopath sv1 gtb aol aolbuild america avant tencenttraveler theworld foxy green browser lbbrowser lunascape sleipnir
    coolnovo comodo_dragon dragon rockmelt flock chromeplus nichrome coc_coc_browser whale ccleaner avast avastsecurebrowser
    avg safezone secure norton obigo swing iris ecosia dogpile aloha alohabrowser phx ddgios mypal viasat sputnikbrowser
    atwork colibri kiwi lightspeed quark cent sogoumobilebrowser sogoumse ssl mob 360se 360ee qihu
    xbox steam valve gameoverlay java(tm) kindle nook cloud9 kobo
    touchwiz odin juc rim bolt mauiwap wap browser-mtk mtk nucleus dorado novarra-vision nokian embider
    """.split()
)

#: Words that browsers, their makers' apps and unwanted programs on people's computers add behind a browser's own.
TAIL_PRODUCTS = frozenset(
    """
    librewolf floorp zen cometbird ordissimo webissimo cyberfox icedragon k-meleon conkeror pale iridium epic torch amigo
    kometa orbitum sputnik mailru coccoc slimbrowser slimjet chromodo chedot superbird crazy baidu sogou liebao cheetah
    maxthon qwantbrowser qwant cliqz ghostery arc bravesoftware hola avira adblock opera gx wails.io wails tauri
    bingsapphire bingweb bing rakutenwebsearch rakuten mcent mobicip steamdeck sailfishbrowser teslabrowser srware
    agency viewer config trailer herring likewise unique openwave atcontent gls edition adg ddg sidekick leikeim
    cordova-amazon-fireos cordova capacitor ionic photos news instapaper pocket webview osmeta ant.com toolbar firephp
    nokiabrowser hyperapp gwx netdocuments desktopapp citrix chromiumedge edgw edgx bdspark squider searchcraft spreaker abb bropp yasearchapp
    zenkit omi babya discoverer
    """.split()
)

#: Words by which automation names itself, in groups so that the model learns about words that it never saw together.
AUTOMATION_WORDS: dict[str, re.Pattern[str]] = {
    name: re.compile(words, re.IGNORECASE)
    for name, words in {
        "bot": r"bot(?![a-z])|bots?\b|robot",
        "crawl": r"crawl|spider|slurp|scrap(?:e|y|ing)|harvest|collector|extract|grab|\bwalker|\bhunter|archiv",
        "fetch": r"fetch|download|retriev|proxy|preview|prefetch|snippet|unfurl|embed|expand|prerender|thumb|screenshot",
        "check": r"check|monitor|valid|verif|audit|inspect|scan|probe|ping(?:dom|er)?\b|uptime|test(?:er|ing)?\b|health"
        r"|watch(?!os)|track|analy[sz]|survey|detect|measure|security|research|census|discover|explor(?!er)|resolver",
        "feed": r"feed|rss|atom\b|podcast|aggregat|reader\b|subscriber|syndicat|news(?!app)",
        "search": r"search(?!browser)|index(?:er|ing)?\b|seo|rank|sitemap|link(?!ed)|ads?(?:bot|s)?\b|favicon|finder|hub\b",
        "script": r"python|\bperl|\bruby|\bphp|java(?:/|-)|\bgo[-/ ]|golang|node(?:[-./]|js)|\bcurl|wget|urllib|requests?\b"
        r"|aiohttp|httpx|axios|\bgot\b|undici|okhttp|guzzle|faraday|typhoeus|\.net/|powershell|winhttp|libwww|lwp|mechanize"
        r"|jakarta|rust|reqwest|erlang|hackney|elixir|scala|deno|\bbun/|lua-|haskell|\br curl",
        "http": r"http(?!s?:)|\bclient|\blib|\bapi\b|sdk|agent\b|service|server|worker|tool(?!bar)|webhook|daemon|engine\b",
        "headless": r"headless|phantom|selenium|webdriver|puppeteer|playwright|cypress|slimer|zombie|htmlunit|jsdom|nightmare"
        r"|splash|lighthouse|gtmetrix|pagespeed|webpagetest|emulat|simulat",
        "ai": r"\bai\b|gpt|\bllm|claude|anthropic|openai|perplexity|cohere|deepseek|mistral",
    }.items()
}

#: "compatible; Name": old browsers named their models, crawlers name themselves there.
COMPATIBLE = re.compile(r"compatible; ?([A-Za-z][\w.-]*)")
SOURCE_BROWSERS = re.compile(
    r"MSIE|Konqueror|Windows|Opera|Google Desktop|PalmOS|Linux|Android|iCab|Yahoo! Widget|MSN", re.I
)

#: An address to write to or to read about the client at, which crawlers give and browsers do not.
CONTACT = re.compile(
    r"\+ ?(?:https?:|www\.|mailto:|[\w.-]+@)|\(https?:|\bmailto:|(?<![\w.-])[\w.-]{1,64}@[A-Za-z0-9-]{1,63}\.[a-z]{2,}"
)

#: Tools that drive browsers or run scripts, even where they name a browser too.
AUTOMATION_TOOLS = re.compile(
    r"headless|phantomjs|casperjs|slimerjs|jsdom|htmlunit|zombie\.?js|nightmare/|selenium|webdriver|puppeteer|playwright"
    r"|cypress/|browsershot|wkhtmlto|\bsplash (?=version)|chrome-lighthouse|synthetics?\b|powershell",
    re.IGNORECASE,
)

#: HTTP libraries inside apps that people use: no browser, and no proof of automation either.
APP_LIBRARIES = re.compile(
    r"okhttp|cfnetwork|dalvik|cronet|alamofire|afnetworking|httpurlconnection|volley|dart/|unityplayer", re.IGNORECASE
)

#: Search operators that mark a referrer as a search engine's.
SEARCH_HOSTS = re.compile(r"(?:^|\.)(?:google|bing|yahoo|duckduckgo|yandex|baidu|ecosia|naver|seznam|ask|qwant)\.")
